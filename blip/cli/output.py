"""What a verb prints."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from blip.results import Result


def print_result(result: "Result", file: Path | None = None) -> None:
    """Prints a result as JSON without curves and parameters, or writes all of it to a file."""
    from blip.distributed import is_main

    if file is None:
        typer.echo(result.model_dump_json(indent=1, exclude={"curves", "params"}))
    elif is_main():
        result.save(file)
