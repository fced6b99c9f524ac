"""The verbs that fetch, convert, judge and register models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blip.cli.options import (
    SOURCE,
    DataFolder,
    ModelFolder,
    Out,
    Overrides,
    PipelineName,
    Preset,
    Revision,
    Storage,
    required_preset,
    run_context,
)
from blip.cli.output import Printed
from blip.cli.places import existing_file, writable_folder

if TYPE_CHECKING:
    from blip.results import Result


def fetch_weights(
    to: Annotated[
        str, typer.Option(callback=writable_folder, help="The store to fill: a folder, or s3://bucket/prefix.")
    ],
    preset: Preset = "",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Changes a stage's key; may be repeated.")
    ] = [],  # noqa: B006
    pipeline: Annotated[PipelineName, typer.Option(help="The pipeline whose stages' models to fetch.")] = "bootstrap",
    stage: Annotated[
        list[str],
        typer.Option(help="A stage whose models to fetch in place of a pipeline's; may be repeated."),
    ] = [],  # noqa: B006
) -> "Result":
    """Copy the weights and vocabularies that a preset names on the hub into a store, for machines without a network.

    Every verb looks there first if BLIP_WEIGHTS names the store.
    """
    from blip.runs.fetch_weights import fetch_weights
    from blip.runs.stages import PIPELINES

    return fetch_weights(required_preset(preset), overrides, to, stage or PIPELINES[pipeline])


def evaluate(
    model: ModelFolder,
    data: DataFolder,
    out: Out,
    task: Annotated[
        list[str],
        typer.Option(
            metavar="TASK",
            help="What to score, may be repeated: retrieval, captioning, vqa, nlvr, dialog, video_retrieval, video_qa; "
            "none: retrieval and captioning.",
        ),
    ] = [],  # noqa: B006
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> "Result":
    """Score a model on a split, and write the files that the data sets' servers take."""
    from blip.runs.evaluate import evaluate

    chosen = [f"tasks=[{','.join(task)}]"] if task else []
    return evaluate(run_context(preset, chosen + overrides, store, revision), data=data, model=model, out=out)


def register(
    name: Annotated[str, typer.Argument(help="The name in the registry of models.")],
    model: ModelFolder,
    before: Annotated[
        Path, typer.Option(callback=existing_file, help="The first model's figures, `metrics.json` of its evaluation.")
    ],
    after: Annotated[Path, typer.Option(callback=existing_file, help="This model's figures.")],
    preset: Annotated[
        str, typer.Option("--preset", "--config", help="Whose gate; that of all presets is the same.")
    ] = "base",
    overrides: Overrides = [],  # noqa: B006
    revision: Revision = "",
) -> "Result":
    """Register a model as champion, only if it beats the first model and the champion so far."""
    from blip.runs.register import register

    return register(run_context(preset, overrides, "", revision), name, model=model, before=before, after=after)


def export(
    model: ModelFolder,
    out: Out,
    format: Annotated[
        Literal["official", "hf"], typer.Option(help="The reference implementation's, or transformers'.")
    ],
) -> Printed:
    """Write a model in another implementation's format."""
    from blip.runs.export import export

    folders = [str(folder) for folder in export(model, out, format)]
    return Printed({"folders": folders}, "\n".join(folders))


def import_model(
    source: Annotated[str, typer.Argument(help=f"The model: {SOURCE}.")],
    out: Out,
    tokenizer: Annotated[
        str, typer.Option(help="A folder, vocab.txt, store's URI or hub name, if none lies beside the model.")
    ] = "",
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="What the files do not tell: model.vision.heads=12, task.prompt=..."
        ),
    ] = [],  # noqa: B006
) -> Printed:
    """Write a released or exported checkpoint of BLIP as a model folder of ours."""
    from blip.runs.import_model import import_model

    line = import_model(source, out, tokenizer, overrides)
    return Printed({"folder": str(out), "model": line.removeprefix(f"{out}: ")}, line)
