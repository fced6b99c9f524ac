"""The program `blip`: its verbs, and what becomes of their errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from blip.cli import cleaning, data, models, pictures, project, training
from blip.cli.output import print_error
from blip.cli.verb import JSON, AsJson, Quiet, as_verb

PROGRAM = "blip"
"""What usage and completion call it, however it was started."""
PANELS = {
    "Images and texts": {
        "caption": pictures.caption,
        "match": pictures.match,
        "ask": pictures.ask,
    },
    "Data sets": {
        "ingest": data.ingest,
        "capfilt": cleaning.capfilt,
        "select": cleaning.select,
        "write-tars": data.write_tars,
        "cache-features": data.cache_features,
    },
    "Training": {
        "train": training.train,
        "make-frozen": training.make_frozen,
    },
    "Models": {
        "evaluate": models.evaluate,
        "register": models.register,
        "import": models.import_model,
        "export": models.export,
        "fetch-weights": models.fetch_weights,
    },
    "Project": {
        "init": project.init,
        "doctor": project.doctor,
        "summary": project.summary,
    },
}


class Verbs(TyperGroup):
    """Prints user errors as one line, with an exit code that tells whether a retry can help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[JSON] = "--json" in args  # before anything can be wrong
        if not args:
            return super().parse_args(ctx, args)  # which prints the help
        with reported(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with reported(ctx):
            return super().invoke(ctx)


@contextmanager
def reported(ctx: Any) -> Iterator[None]:
    """Ends the program with a line for an error that users can resolve."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        from blip.cli.mistakes import user_error

        found = user_error(error, ctx.invoked_subcommand or "")
        if found is None:
            raise
        line, code = found
        print_error(line, code, ctx.meta[JSON])
        raise typer.Exit(code) from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="BLIP's bootstrapping on the command line: caption, match, clean, train, judge.",
)
for panel, verbs in PANELS.items():
    for name, function in verbs.items():
        app.command(name, rich_help_panel=panel)(as_verb(function))


@app.callback()
def prepare(as_json: AsJson = False, quiet: Quiet = False) -> None:  # noqa: ARG001
    from blip import logs

    logs.quiet()


def main() -> None:
    """Runs the command line."""
    from blip.logs import use_utf8

    use_utf8()
    app(prog_name=PROGRAM)
