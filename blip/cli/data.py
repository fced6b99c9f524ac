"""The verbs that read and write data sets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip.cli.options import DataFolder, FrozenModels, Out, Overrides, Preset, Revision, Storage, run_context
from blip.cli.places import writable_folder

if TYPE_CHECKING:
    from blip.results import Result


def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Where own data lie, in one or several places: folders, tables, annotations, tars, patterns of them, "
            "here, in a store, or at gs://, hf://, https://; or `shapes`; or `tars` that data.gold, data.web and "
            "data.test name; none: what the settings say.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="The folder to write; --dry-run needs none.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only write a page, dry-run.html, with ten samples as pictures, what would be left out and why, and "
            "where the rest would go.",
        ),
    ] = False,
    split: Annotated[
        str,
        typer.Option(
            metavar="SHARES",
            help="Divides one set: 0.9/0.1 (train, test), 0.2/0.7/0.1 (gold, web, test), or gold=0.2/web=0.7/test=0.1.",
        ),
    ] = "",
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The column, or the field of a sample's json, that has the text.")
    ] = "",
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> "Result":
    """Read a data set once, into shards with manifests and a tokenizer; what it is is guessed and said.

    An interrupted call goes on behind the shards that are written.
    """
    short = {"data.split": split, "data.text_field": text_field}
    asked = [*(f"{key}={json.dumps(value)}" for key, value in short.items() if value), *overrides]
    if dry_run:
        from blip.runs.context import RunContext
        from blip.runs.dry_run import dry_run as look

        return look(RunContext(preset=preset, overrides=tuple(asked), store=store), sources or (), out or ".")
    if out is None:
        from blip.config import ConfigError

        raise ConfigError("Missing option '--out': the folder to write, or --dry-run to see what would be written.")
    from blip.runs.ingest import ingest

    return ingest(run_context(preset, asked, store, revision), sources or (), out=out)


def cache_features(
    stage: Annotated[str, typer.Argument(help="A stage of BLIP-2, such as blip2_stage1.")],
    data: DataFolder,
    out: Out,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
    frozen: FrozenModels = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of a forward pass.")] = 64,
) -> "Result":
    """Keep a frozen image encoder's features of a data set, so that training need not compute them again."""
    from blip.runs.cache_features import cache_features

    run = run_context(preset, overrides, store, revision)
    return cache_features(run, stage, data=data, out=out, frozen=frozen, batch=batch)


def write_tars(
    source: Annotated[str, typer.Argument(help="The manifest of the data folder: web, gold, test.")],
    data: DataFolder,
    out: Annotated[
        str, typer.Option(callback=writable_folder, help="Where the tars go: a folder, or s3://bucket/prefix.")
    ],
    per_shard: Annotated[int, typer.Option(min=1, help="Samples of a tar.")] = 10_000,
    each_text: Annotated[
        bool, typer.Option(help="A sample, with its image, for every text: for tools that read txt alone.")
    ] = False,
) -> "Result":
    """Write a data set or a selection as self-contained WebDataset tars, for other tools."""
    from blip.runs.write_tars import write_tars

    return write_tars(data, source, out, per_shard, each_text=each_text)
