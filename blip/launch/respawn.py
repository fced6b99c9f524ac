"""A verb in several processes of this machine, as the verb itself asks for them."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from blip.launch.local import launch, local_process_count
from blip.storage import scratch


def to_start(processes: int) -> int:
    """How many processes a verb has to start, 0 where this one does the work: it is the only one, or was started for it.

    `processes` is what was asked for; 0 stands for one a GPU.
    """
    count = local_process_count(processes)
    return count if count > 1 and "WORLD_SIZE" not in os.environ else 0


def words(options: Mapping[str, str | None], overrides: Sequence[str]) -> list[str]:
    """Options, those without a value left out, and configuration overrides as words of the command line."""
    given = [(name, value) for name, value in options.items() if value]
    return [word for pair in [*given, *(("--set", override) for override in overrides)] for word in pair]


def spread(arguments: Sequence[str], processes: int) -> dict[str, Any]:
    """Runs a verb of the command line in several processes and gives the first one's figures. Ends with their exit code if they fail."""
    with scratch("figures") as folder:
        figures = folder / "figures.json"
        code = launch("blip.cli", [*arguments, "--figures", str(figures)], processes)
        if code:
            raise SystemExit(code)
        return json.loads(figures.read_text())
