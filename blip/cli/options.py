"""Options that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blip.cli.mistakes import mistake
from blip.cli.places import existing_data, existing_folder, existing_model, writable_file, writable_folder

if TYPE_CHECKING:
    from blip.runs.context import RunContext

PROJECT = "blip.yaml"
"""The file of settings that verbs read if none is named."""
PipelineName = Literal["bootstrap", "blip2", "blip2_capfilt"]
"""The pipelines whose stages name models."""


def preset_names() -> list[str]:
    from blip.config import presets

    return presets()


def training_stage_names() -> list[str]:
    from blip.config import training_stages

    return training_stages()


Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        "--config",
        autocompletion=preset_names,
        metavar="NAME",
        help="Settings: base or large (the paper's), reference (with the quirks of its code), shapes (debug size); "
        "or a .yaml file that changes one of them, as `blip init` writes it; by default blip.yaml here.",
    ),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Changes a configuration key; may be repeated.")
]
Storage = Annotated[
    str,
    typer.Option(
        "--store", callback=writable_folder, help="Where shards and checkpoints go: a folder, or s3://bucket/prefix."
    ),
]
Revision = Annotated[str, typer.Option(envvar="BLIP_REVISION", help="The code's revision, for the records.")]
DataFolder = Annotated[
    Path, typer.Option(callback=existing_data, help="The folder of manifests that `ingest` or `capfilt` wrote.")
]
FrozenModels = Annotated[
    Path | None,
    typer.Option(
        "--frozen", callback=existing_folder, help="The folder that `make-frozen` wrote, if the settings ask for it."
    ),
]
SOURCE = (
    "a model folder of ours, a folder of transformers or open_clip, a .pth of the reference, here or in a store; "
    "a hub name; open_clip:ARCHITECTURE:WEIGHTS; models:/NAME@ALIAS or a run of MLflow"
)
ModelFolder = Annotated[str, typer.Option(metavar="MODEL", callback=existing_model, help=f"The model: {SOURCE}.")]
Processes = Annotated[int, typer.Option(min=0, help="Processes of this machine; 0 is one for each GPU.")]
FiguresFile = Annotated[
    Path | None, typer.Option(callback=writable_file, help="A file for the figures, in place of the terminal.")
]
Out = Annotated[Path, typer.Option(callback=writable_folder, help="The folder to write.")]


def run_context(preset: str, overrides: list[str], store: str, revision: str) -> "RunContext":
    """Returns the run context of the options. Raises ConfigError if no preset is named."""
    from blip.runs.context import RunContext

    return RunContext(preset=required_preset(preset), overrides=tuple(overrides), store=store, revision=revision)


def required_preset(value: str) -> str:
    """Returns the preset, or the project's file of this folder. Raises ConfigError if there is neither."""
    if not value and Path(PROJECT).is_file():
        from blip.logs import log

        log.info("settings: %s", PROJECT)
        return PROJECT
    if not value:
        from blip.config import presets

        raise mistake(
            f"--preset is missing: one of {', '.join(presets())}, or a .yaml file that changes one of them; "
            f"`blip init` writes {PROJECT}, which is read by default"
        )
    return value
