"""`python -m blip.cli`."""

from blip.cli.program import main

if __name__ == "__main__":
    main()
