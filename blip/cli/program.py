"""The program `blip`: its verbs, and what becomes of their errors."""

import re
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperGroup

from blip.cli import cleaning, data, models, pictures, project, training
from blip.cli.mistakes import user_error
from blip.config import EXIT_CONFIG


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


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The pipeline's verbs on the command line.",
)
app.command("fetch-weights")(models.fetch_weights)
app.command("ingest")(data.ingest)
app.command("make-frozen")(training.make_frozen)
app.command("cache-features")(data.cache_features)
app.command("train")(training.train)
app.command("capfilt")(cleaning.capfilt)
app.command("select")(cleaning.select)
app.command("write-tars")(data.write_tars)
app.command("evaluate")(models.evaluate)
app.command("register")(models.register)
app.command("export")(models.export)
app.command("import")(models.import_model)
app.command("caption")(pictures.caption)
app.command("match")(pictures.match)
app.command("summary")(project.summary)


@app.callback()
def prepare() -> None:
    from blip.logs import quiet

    quiet()


def extra_of(module: str) -> str:
    """Returns the extra of this package that installs a module, or an empty string where none does."""
    package = module.partition(".")[0]
    lines = metadata.requires("blip-bootstrap") or []
    found = [re.fullmatch(rf"{re.escape(package)}\b.*extra == \W(\w+)\W", line) for line in lines]
    return next((match[1] for match in found if match), "")


def main() -> None:
    """Runs the command line."""
    from blip.logs import use_utf8

    use_utf8()
    app()
