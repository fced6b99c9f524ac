"""The verbs of CapFilt: score texts, and select among them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip.cli.mistakes import mistake
from blip.cli.options import SOURCE, Out, Overrides, Preset, Revision, Storage, run_context
from blip.cli.places import existing_folder, existing_model, writable_file

if TYPE_CHECKING:
    from blip.results import Result


def capfilt(
    data: Annotated[
        str,
        typer.Option(
            help="The folder of manifests that `ingest` or `select` wrote; or tars: a folder, pattern, prefix."
        ),
    ],
    out: Out,
    captioner: Annotated[
        str | None,
        typer.Option(metavar="MODEL", callback=existing_model, help=f"The model that writes captions: {SOURCE}."),
    ] = None,
    filters: Annotated[
        list[str],
        typer.Option(
            "--filter",
            metavar="[NAME=]MODEL",
            callback=existing_model,
            help="A model that scores how well texts match. Scores of further ones, by name, stand beside it.",
        ),
    ] = [],  # noqa: B006
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> "Result":
    """Caption every web image and score every text, skipping finished shards; `select` keeps what matches."""
    from blip.runs.capfilt import capfilt

    run = run_context(preset, overrides, store, revision)
    return capfilt(run, data=data, captioner=captioner, filter=named(filters), out=out)


def named(filters: list[str]) -> dict[str, str] | None:
    """Returns the models of `NAME=MODEL` by name; one without is `filter`. Raises ConfigError if a name comes twice."""
    found: dict[str, str] = {}
    for text in filters:
        match = re.fullmatch(r"(?:(\w[\w-]*)=)?(.+)", text)
        name, model = (match[1] or "filter", match[2]) if match else ("filter", text)
        if name in found:
            raise mistake(f"--filter {text}: there is a filter {name!r} already; name this one as clip={model}")
        found[name] = model
    return found or None


def select(
    data: Annotated[
        Path,
        typer.Option(
            callback=existing_folder,
            help="The folder that `capfilt` wrote, or one of an earlier selection, to select anew.",
        ),
    ],
    out: Out,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="The p(match) from which on a text is kept: 0.6, or of one source as web=0.7, the rest stays; or the "
            "share of texts to keep: 30%.",
        ),
    ] = "",
    by: Annotated[
        str, typer.Option(metavar="SCORE", help="Another score for the threshold: similarity, or clip.similarity.")
    ] = "",
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="In place of a threshold of web texts: the share of true ones to have among those that are kept, 0.9; "
            "`capfilt` must have scored decoys (stream.decoys=true).",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Where to write a page of pictures, texts, scores and decisions."),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", "--config", help="Whose settings; none: as the selection that made --data.")
    ] = "",
    overrides: Overrides = [],  # noqa: B006
    revision: Revision = "",
) -> "Result":
    """Select matching texts by the stored scores, in seconds, without models or images."""
    from blip.runs.context import RunContext
    from blip.runs.select import select

    run = RunContext(preset=preset, overrides=tuple(overrides), revision=revision)
    return select(run, data=data, out=out, page=page, threshold=threshold, by=by, precision=precision)
