"""The verbs that concern a project as a whole."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.output import Shown
from blip.cli.places import existing_file


def summary(
    path: Annotated[Path, typer.Argument(callback=existing_file, help="A run's summary.json.")] = Path(
        "runs/latest/summary.json"
    ),
) -> Shown:
    """Show what a run changed, before and after."""
    from blip.report.blip2_summary import Blip2Summary, blip2_table, read_values
    from blip.report.summary import Summary, summary_table

    values = read_values(path)
    blip2 = values.get("type") == "blip2"
    return Shown(values, blip2_table(Blip2Summary.of(values, path)) if blip2 else summary_table(Summary.load(path)))
