"""Runs a verb again in several processes of this machine, through the command line."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from blip.launch.local import launch, local_process_count
from blip.results import Result
from blip.storage import scratch

R = TypeVar("R", bound=Result)


def processes_to_start(processes: int) -> int:
    """Returns the number of processes to start; 0 if this process does the work itself.

    That is the case for a single process, and in a process that was already started by a launcher. `processes` is the
    requested number, 0 for one per GPU. Raises ConfigError if it exceeds the number of GPUs.
    """
    count = local_process_count(processes)
    return count if count > 1 and "WORLD_SIZE" not in os.environ else 0


def argv(options: Mapping[str, str | None], overrides: Sequence[str]) -> list[str]:
    """Formats options that have a value, and configuration overrides, as command line arguments."""
    given = [(name, value) for name, value in options.items() if value]
    given += [("--set", override) for override in overrides]
    return [argument for pair in given for argument in pair]


def run_in_processes(arguments: Sequence[str], processes: int, result: type[R]) -> R:
    """Runs a verb in several processes and returns the result of rank 0. Exits with their exit code if they fail."""
    with scratch("figures") as folder:
        figures = folder / "figures.json"
        code = launch("blip.cli", [*arguments, "--figures", str(figures)], processes)
        if code:
            raise SystemExit(code)
        return result.load(figures)
