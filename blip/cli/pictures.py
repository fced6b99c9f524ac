"""The verbs for images that are in no data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip.cli.options import ModelFolder
from blip.cli.output import Printed, table
from blip.cli.places import existing_model, writable_file

if TYPE_CHECKING:
    from blip.results import Result

ImagePaths = Annotated[list[str], typer.Argument(help="Images: files, folders, patterns, tars; here or in a store.")]
Table = Annotated[Path, typer.Option(callback=writable_file, help="The table to write: .jsonl, .csv or .parquet.")]
LabelOverrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting: batch, captions, decoding, seed, captioner.prompt ..."),
]


def caption(
    images: ImagePaths,
    model: ModelFolder,
    out: Table,
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            callback=existing_model,
            help="A model that scores the captions, if they are to have scores.",
        ),
    ] = None,
    overrides: LabelOverrides = [],  # noqa: B006
) -> "Result":
    """Caption images at once; an interrupted call goes on where it was."""
    from blip.runs.label import caption

    return caption(images, model=model, out=out, filter=filter, overrides=overrides)


def match(
    images: Annotated[str, typer.Argument(metavar="IMAGE", help="An image, a folder or a pattern of images, or tars.")],
    model: ModelFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="The texts; none takes those beside the images.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="A table, .jsonl, .csv or .parquet, in place of the terminal."),
    ] = None,
    overrides: LabelOverrides = [],  # noqa: B006
) -> "Result | Printed":
    """Score how well texts match images: p(match) and similarity."""
    from blip.runs.label import match, match_rows

    if out is None:
        return shown_rows(match_rows(images, texts or [], model, overrides))
    return match([images], texts or [], model=model, out=out, overrides=overrides)


def shown_rows(rows: list[dict[str, Any]]) -> Printed:
    """Returns scores as a table, with the images where there are several."""
    columns = ["match", "similarity", "text", "error"]
    if len({row["image"] for row in rows}) > 1:
        columns.insert(0, "image")
    return Printed({"rows": rows}, table(columns, rows))


def ask(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An image.")],
    texts: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Questions about it.")],
    model: ModelFolder,
    dialogue: Annotated[
        bool, typer.Option("--dialogue", help="Ask one after the other: the model of a BLIP-2 reads those before.")
    ] = False,
    instruct: Annotated[
        bool, typer.Option("--instruct", help="Not questions but prompts, after which the model of a BLIP-2 goes on.")
    ] = False,
) -> Printed:
    """Answer questions about an image."""
    from blip.api import load
    from blip.config import ConfigError

    if dialogue and instruct:
        raise ConfigError("--dialogue and --instruct exclude each other: give one of them")
    asked = load(model)
    method = asked.converse if dialogue else asked.instruct if instruct else asked.answer
    try:
        answers = method(image, texts)
    except ValueError as error:  # a model that was trained for something else, a file that is no image
        raise ConfigError(str(error)) from None
    said = "prompt" if instruct else "question"
    rows = [{said: text, "answer": answer} for text, answer in zip(texts, answers, strict=True)]
    return Printed({"rows": rows}, table([said, "answer"], rows))
