"""`blip`: the pipeline's verbs on the command line."""

from blip.cli.program import app, main

__all__ = ["app", "main"]
