"""`python -m blip.launch`: torchrun that keeps its workers' exit code."""

from blip.launch.local import main

main()
