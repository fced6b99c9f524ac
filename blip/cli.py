"""`blip`: the pipeline's verbs on the command line."""

import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from blip.config import EXIT_CONFIG, ConfigError
from blip.mistakes import (
    existing_file,
    existing_folder,
    existing_model,
    required_preset,
    user_error,
    writable_file,
    writable_folder,
)

if TYPE_CHECKING:
    from blip.results import Result
    from blip.runs.context import RunContext


class Verbs(TyperGroup):
    """Prints user errors as one line, with an exit code that tells whether a retry can help."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = extra_of(error.name or "")
            if not extra:
                raise
            verb = ctx.invoked_subcommand
            typer.echo(f"blip: {verb} needs {error.name}: pip install 'blip-bootstrap[{extra}]'", err=True)
            raise typer.Exit(EXIT_CONFIG) from None
        except Exception as error:
            found = user_error(error)
            if found is None:
                raise
            line, code = found
            typer.echo(f"blip: {line}", err=True)
            raise typer.Exit(code) from None


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Preset = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Settings: base or large (the paper's), reference (with the quirks of its code), shapes (debug size); "
        "or a .yaml file that changes one of them. There is no default.",
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
Data = Annotated[
    Path, typer.Option(callback=existing_folder, help="The folder of manifests that `ingest` or `capfilt` wrote.")
]
SOURCE = (
    "a model folder of ours, a folder of transformers or open_clip, a .pth of the reference, here or in a store; "
    "a hub name; models:/NAME@ALIAS or a run of MLflow"
)
ModelFolder = Annotated[str, typer.Option(metavar="MODEL", callback=existing_model, help=f"The model: {SOURCE}.")]
Processes = Annotated[int, typer.Option(min=0, help="Processes of this machine; 0 is one for each GPU.")]
FiguresFile = Annotated[
    Path | None, typer.Option(callback=writable_file, help="A file for the figures, in place of the terminal.")
]
Out = Annotated[Path, typer.Option(callback=writable_folder, help="The folder to write.")]


@app.callback()
def prepare() -> None:
    from blip.logs import quiet

    quiet()


@app.command("fetch-weights")
def fetch_weights(
    to: Annotated[
        str, typer.Option(callback=writable_folder, help="The store to fill: a folder, or s3://bucket/prefix.")
    ],
    preset: Preset = "",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Changes a stage's key; may be repeated.")
    ] = [],  # noqa: B006
    pipeline: Annotated[
        Literal["bootstrap", "blip2"], typer.Option(help="The pipeline whose stages' models to fetch.")
    ] = "bootstrap",
    stage: Annotated[
        list[str],
        typer.Option(help="A stage whose models to fetch in place of a pipeline's; may be repeated."),
    ] = [],  # noqa: B006
) -> None:
    """Copy the weights and vocabularies that a preset names on the hub into a store, for machines without a network.

    Every verb looks there first if BLIP_WEIGHTS names the store.
    """
    from blip.runs.fetch_weights import fetch_weights
    from blip.runs.stages import PIPELINES

    print_result(fetch_weights(required_preset(preset), overrides, to, stage or PIPELINES[pipeline]))


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="`shapes`, a manifest (.json) of web pairs, or `tars` that data.gold, data.web and data.test name."
        ),
    ],
    out: Out,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
) -> None:
    """Read a data set once, into shards with manifests and a tokenizer."""
    from blip.runs.ingest import ingest

    print_result(ingest(run_context(preset, overrides, store, revision), source, out=out))


@app.command("make-frozen")
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


@app.command("cache-features")
def cache_features(
    stage: Annotated[str, typer.Argument(help="A stage of BLIP-2, such as blip2_stage1.")],
    data: Data,
    out: Out,
    preset: Preset = "",
    overrides: Overrides = [],  # noqa: B006
    store: Storage = "runs/store",
    revision: Revision = "",
    batch: Annotated[int, typer.Option(min=1, help="Images of a forward pass.")] = 64,
) -> None:
    """Keep a frozen image encoder's features of a data set, so that training need not compute them again."""
    from blip.runs.cache_features import cache_features

    print_result(
        cache_features(run_context(preset, overrides, store, revision), stage, data=data, out=out, batch=batch)
    )


@app.command()
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
    frozen: Annotated[
        Path | None,
        typer.Option(callback=existing_folder, help="The folder that `make-frozen` wrote, if the settings ask for it."),
    ] = None,
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


@app.command()
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
) -> None:
    """Caption every web image and score every text, skipping finished shards; `select` keeps what matches."""
    from blip.runs.capfilt import capfilt

    run = run_context(preset, overrides, store, revision)
    print_result(capfilt(run, data=data, captioner=captioner, filter=named(filters), out=out))


@app.command()
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
    page: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Where to write a page of pictures, texts, scores and decisions."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose settings; none: as the selection that made --data.")] = "",
    overrides: Overrides = [],  # noqa: B006
    revision: Revision = "",
) -> None:
    """Select matching texts by the stored scores, in seconds, without models or images."""
    from blip.runs.context import RunContext
    from blip.runs.select import select

    run = RunContext(preset=preset, overrides=tuple(overrides), revision=revision)
    print_result(select(run, data=data, out=out, page=page, threshold=threshold, by=by))


@app.command("write-tars")
def write_tars(
    source: Annotated[str, typer.Argument(help="The manifest of the data folder: web, gold, test.")],
    data: Data,
    out: Annotated[str, typer.Option(help="Where the tars go: a folder, or s3://bucket/prefix.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Samples of a tar.")] = 10_000,
    each_text: Annotated[
        bool, typer.Option(help="A sample, with its image, for every text: for tools that read txt alone.")
    ] = False,
) -> None:
    """Write a data set or a selection as self-contained WebDataset tars, for other tools."""
    from blip.runs.write_tars import write_tars

    print_result(write_tars(data, source, out, per_shard, each_text=each_text))


@app.command()
def evaluate(
    model: ModelFolder,
    data: Data,
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
) -> None:
    """Score a model on a split, and write the files that the data sets' servers take."""
    from blip.runs.evaluate import evaluate

    chosen = [f"tasks=[{','.join(task)}]"] if task else []
    print_result(evaluate(run_context(preset, chosen + overrides, store, revision), data=data, model=model, out=out))


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="The name in the registry of models.")],
    model: ModelFolder,
    before: Annotated[
        Path, typer.Option(callback=existing_file, help="The first model's figures, `metrics.json` of its evaluation.")
    ],
    after: Annotated[Path, typer.Option(callback=existing_file, help="This model's figures.")],
    preset: Annotated[str, typer.Option(help="Whose gate; that of all presets is the same.")] = "base",
    overrides: Overrides = [],  # noqa: B006
    revision: Revision = "",
) -> None:
    """Register a model as champion, only if it beats the first model and the champion so far."""
    from blip.runs.register import register

    print_result(register(run_context(preset, overrides, "", revision), name, model=model, before=before, after=after))


@app.command()
def export(
    model: ModelFolder,
    out: Out,
    format: Annotated[
        Literal["official", "hf"], typer.Option(help="The reference implementation's, or transformers'.")
    ],
) -> None:
    """Write a model in another implementation's format."""
    from blip.runs.export import export

    for folder in export(model, out, format):
        typer.echo(folder)


@app.command("import")
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
) -> None:
    """Write a released or exported checkpoint of BLIP as a model folder of ours."""
    from blip.runs.import_model import import_model

    typer.echo(import_model(source, out, tokenizer, overrides))


ImagePaths = Annotated[list[str], typer.Argument(help="Images: files, folders, tars.")]
Table = Annotated[Path, typer.Option(callback=writable_file, help="The table to write: .jsonl, .csv or .parquet.")]
LabelOverrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting: batch, captions, decoding, seed, captioner.prompt ..."),
]


@app.command()
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
) -> None:
    """Caption images at once; an interrupted call goes on where it was."""
    from blip.runs.label import caption

    print_result(caption(images, model=model, out=out, filter=filter, overrides=overrides))


@app.command()
def match(
    images: Annotated[str, typer.Argument(metavar="IMAGE", help="An image, a folder of images, or tars.")],
    model: ModelFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="The texts; none takes those beside the images.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="A table, .jsonl, .csv or .parquet, in place of the terminal."),
    ] = None,
    overrides: LabelOverrides = [],  # noqa: B006
) -> None:
    """Score how well texts match images: p(match) and similarity."""
    from blip.runs.label import match, shown_match

    if out is None:
        typer.echo(shown_match(images, texts or [], model, overrides))
    else:
        print_result(match([images], texts or [], model=model, out=out, overrides=overrides))


@app.command()
def summary(
    path: Annotated[Path, typer.Argument(callback=existing_file, help="A run's summary.json.")] = Path(
        "runs/latest/summary.json"
    ),
) -> None:
    """Show what a run changed, before and after."""
    from rich.console import Console

    from blip.report.blip2_summary import Blip2Summary, blip2_table, read_values
    from blip.report.summary import Summary, summary_table

    values = read_values(path)
    if values.get("type") == "blip2":
        Console().print(blip2_table(Blip2Summary.of(values, path)))
    else:
        Console().print(summary_table(Summary.load(path)))


def named(filters: list[str]) -> dict[str, str] | None:
    """Returns the models of `NAME=MODEL` by name; one without is `filter`. Raises ConfigError if a name comes twice."""
    found: dict[str, str] = {}
    for text in filters:
        match = re.fullmatch(r"(?:(\w[\w-]*)=)?(.+)", text)
        name, model = (match[1] or "filter", match[2]) if match else ("filter", text)
        if name in found:
            raise ConfigError(f"--filter {text}: there is a filter {name!r} already; name this one as clip={model}")
        found[name] = model
    return found or None


def extra_of(module: str) -> str:
    """Returns the extra of this package that installs a module, or an empty string where none does."""
    package = module.partition(".")[0]
    lines = metadata.requires("blip-bootstrap") or []
    found = [re.fullmatch(rf"{re.escape(package)}\b.*extra == \W(\w+)\W", line) for line in lines]
    return next((match[1] for match in found if match), "")


def run_context(preset: str, overrides: list[str], store: str, revision: str) -> "RunContext":
    """Returns the run context of the options. Raises ConfigError if no preset is named."""
    from blip.runs.context import RunContext

    return RunContext(preset=required_preset(preset), overrides=tuple(overrides), store=store, revision=revision)


def print_result(result: "Result", file: Path | None = None) -> None:
    """Prints a result as JSON without curves and parameters, or writes all of it to a file."""
    from blip.distributed import is_main

    if file is None:
        typer.echo(result.model_dump_json(indent=1, exclude={"curves", "params"}))
    elif is_main():
        result.save(file)


def main() -> None:
    """Runs the command line."""
    from blip.logs import use_utf8

    use_utf8()
    app()


if __name__ == "__main__":
    main()
