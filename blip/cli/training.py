"""The verbs that train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip.cli.options import (
    DataFolder,
    FiguresFile,
    FrozenModels,
    Out,
    Overrides,
    Preset,
    Processes,
    Revision,
    Storage,
    run_context,
    training_stage_names,
)
from blip.cli.places import existing_model, writable_folder

if TYPE_CHECKING:
    from blip.results import Result


def make_frozen(
    out: Out,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> "Result":
    """Train small frozen models for BLIP-2 on the world of shapes, once for the same settings."""
    from blip.runs.make_frozen import make_frozen

    return make_frozen(run_context(preset, overrides, store, revision), out=out)


def train(
    stage: Annotated[
        str,
        typer.Argument(
            autocompletion=training_stage_names,
            help="pretrain, captioner, filter; for a task of the papers retrieval, captioning, vqa, nlvr, dialog; or "
            "one of BLIP-2's, such as blip2_stage1.",
        ),
    ],
    data: DataFolder,
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
) -> "Result | None":
    """Train one stage; an interrupted run resumes from its newest checkpoint."""
    from blip.distributed import is_main, shutdown_distributed
    from blip.runs.train import train

    run = run_context(preset, overrides, store, revision)
    places = {"data": data, "out": out, "init": init, "frozen": frozen, "profile": profile}
    result = train(run, stage, **places, processes=processes)
    if figures and is_main():
        result.save(figures)
    shutdown_distributed()
    return None if figures else result
