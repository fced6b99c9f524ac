"""The verbs that train."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import (
    Data,
    FiguresFile,
    FrozenModels,
    Out,
    Overrides,
    Preset,
    Processes,
    Revision,
    Storage,
    run_context,
)
from blip.cli.output import print_result
from blip.cli.places import existing_model, writable_folder


def make_frozen(
    out: Out,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> None:
    """Train small frozen models for BLIP-2 on the world of shapes, once for the same settings."""
    from blip.runs.make_frozen import make_frozen

    print_result(make_frozen(run_context(preset, overrides, store, revision), out=out))


def train(
    stage: Annotated[str, typer.Argument(help="pretrain, captioner or filter.")],
    data: Data,
    out: Out,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", callback=existing_model, help="The model to start from; none starts from scratch."
        ),
    ] = None,
    frozen: FrozenModels = None,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
    processes: Processes = 0,
    profile: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="A folder for a torch trace of a few steps.")
    ] = None,
    figures: FiguresFile = None,
) -> None:
    """Train one stage; an interrupted run resumes from its newest checkpoint."""
    from blip.distributed import shutdown_distributed
    from blip.runs.train import train

    run = run_context(preset, overrides, store, revision)
    places = {"data": data, "out": out, "init": init, "frozen": frozen, "profile": profile}
    print_result(train(run, stage, **places, processes=processes), figures)
    shutdown_distributed()
