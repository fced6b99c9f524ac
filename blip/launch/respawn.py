"""A verb that runs itself again, by the command line, in several processes of this machine."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from blip.launch.local import launch, local_process_count
from blip.results import Result
from blip.storage import scratch

R = TypeVar("R", bound=Result)


def processes_to_start(processes: int) -> int:
    """Returns how many processes a verb has to start; 0 where this process does the work.

    This process does the work where it is the only one, and where it was started for that. `processes` is what was
    asked for, 0 for one a GPU. Raises ConfigError for more than there are GPUs.
    """
    count = local_process_count(processes)
    return count if count > 1 and "WORLD_SIZE" not in os.environ else 0


def argv(options: Mapping[str, str | None], overrides: Sequence[str]) -> list[str]:
    """Returns options with a value, and configuration overrides, as arguments of the command line."""
    given = [(name, value) for name, value in options.items() if value]
    given += [("--set", override) for override in overrides]
    return [argument for pair in given for argument in pair]


def run_in_processes(arguments: Sequence[str], processes: int, result: type[R]) -> R:
    """Runs a verb in several processes and returns the first one's result. Exits with their exit code if they fail."""
    with scratch("figures") as folder:
        figures = folder / "figures.json"
        code = launch("blip.cli", [*arguments, "--figures", str(figures)], processes)
        if code:
            raise SystemExit(code)
        return result.load(figures)
