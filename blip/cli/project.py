"""The verbs that concern a project and its machine as a whole."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import PROJECT, PipelineName, preset_names
from blip.cli.output import Printed
from blip.cli.places import existing_file, writable_file


def init(
    path: Annotated[Path, typer.Argument(callback=writable_file, help="The file to write.")] = Path(PROJECT),
    preset: Annotated[
        str, typer.Option(autocompletion=preset_names, metavar="NAME", help="The preset to start from.")
    ] = "shapes",
    data: Annotated[str, typer.Option(metavar="SOURCE", help="The data, as `ingest` takes them.")] = "",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Changes a stage's key; may be repeated.")
    ] = [],  # noqa: B006
    pipeline: Annotated[PipelineName, typer.Option(help="Whose stages.")] = "bootstrap",
) -> Printed:
    """Write the settings of a project as YAML, each with its meaning; `--config` of the other verbs takes the file."""
    from blip.runs.init import init
    from blip.runs.stages import PIPELINES

    written = init(path, preset, overrides, PIPELINES[pipeline], data, default=str(path) == PROJECT)
    return Printed({"file": str(written)}, str(written))


def summary(
    path: Annotated[Path, typer.Argument(callback=existing_file, help="A run's summary.json.")] = Path(
        "runs/latest/summary.json"
    ),
) -> Printed:
    """Show what a run changed, before and after."""
    from blip.report.blip2_summary import Blip2Summary, blip2_table, read_values
    from blip.report.summary import Summary, summary_table

    values = read_values(path)
    blip2 = values.get("type") == "blip2"
    return Printed(values, blip2_table(Blip2Summary.of(values, path)) if blip2 else summary_table(Summary.load(path)))


CONDITION_COLOURS = {"ok": "green", "note": "dim", "warning": "yellow", "fault": "red"}


def check_names() -> list[str]:
    from blip.doctor.checks import CHECK_NAMES

    return list(CHECK_NAMES)


def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECK...",
            autocompletion=check_names,
            help="Some of: python, packages, torch, java, memory, disks, shm, store, weights, mlflow, kfp; none: all.",
        ),
    ] = None,
    store: Annotated[
        str, typer.Option("--store", help="The store to try: a folder, or s3://bucket/prefix.")
    ] = "runs/store",
) -> Printed:
    """Check this machine and the services it uses, and say what to do about each; exit with 1 or 42 by the worst."""
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from blip.doctor.checks import examine
    from blip.doctor.finding import worst_exit_code

    findings = list(examine(store, names or ()))
    table = Table(box=None, show_header=False)
    for finding in findings:
        found = f"{finding.found}\n-> {finding.remedy}" if finding.remedy else finding.found
        table.add_row(Text(finding.state, CONDITION_COLOURS[finding.state]), finding.what, Text(found))
    return Printed({"findings": [asdict(finding) for finding in findings]}, table, worst_exit_code(findings))
