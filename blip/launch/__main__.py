"""`python -m blip.launch`: torchrun that exits with the exit code of its workers."""

from blip.launch.local import torchrun

torchrun()
