"""What the program prints: a verb's result on standard output, all else on standard error."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from blip.results import Result

NOT_SHOWN = {"curves", "params"}
"""Fields of results that are for files."""


@dataclass(frozen=True)
class Printed:
    """A result with its own form on the terminal."""

    value: Any
    """What `--json` prints."""
    text: "RenderableType"
    """What is printed otherwise."""
    code: int = 0
    """The exit code."""


def print_result(result: "Result | Printed | None", as_json: bool) -> None:
    """Prints a result as text, or as one JSON value. Raises Exit if its exit code is not 0."""
    if result is None:
        return
    if isinstance(result, Printed):
        if as_json:
            print_json(result.value)
        elif isinstance(result.text, str):
            typer.echo(result.text)
        else:
            from rich.console import Console

            Console().print(result.text)
        if result.code:
            raise typer.Exit(result.code)
    elif as_json:
        print_json(result.model_dump(mode="json", exclude=NOT_SHOWN))
    else:
        typer.echo(text_of(result))


def print_json(value: Any) -> None:
    """Prints a value as JSON; what is no number is null, since JSON has no NaN."""
    typer.echo(json.dumps(without_nan(value), indent=1, ensure_ascii=False, allow_nan=False))


def without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {key: without_nan(inner) for key, inner in value.items()}
        case list() | tuple():
            return [without_nan(inner) for inner in value]
        case float() if not isfinite(value):
            return None
        case _:
            return value


def print_error(line: str, code: int, as_json: bool) -> None:
    """Prints an error as a line on standard error and, for whoever reads JSON, as the value on standard output."""
    typer.echo(f"blip: {line}", err=True)
    if as_json:
        print_json({"error": line, "exit_code": code})


def text_of(result: "Result") -> str:
    """Returns a result as YAML with short numbers, without what is empty."""
    import yaml

    hidden = NOT_SHOWN if result.gpu_hours else {*NOT_SHOWN, "gpu_hours"}
    values = shortened(result.model_dump(mode="json", exclude=hidden))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100).rstrip()


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as aligned lines below the names of their columns, without columns that are empty."""
    kept = [name for name in columns if any(name in row for row in rows)]
    cells = [kept, *([cell(row.get(name, "")) for name in kept] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def shortened(value: Any) -> Any:
    """Returns plain values with four digits of each fraction, without fields that hold nothing."""
    match value:
        case dict():
            short = {key: shortened(inner) for key, inner in value.items()}
            return {key: inner for key, inner in short.items() if inner not in ("", None, {}, [])}
        case list():
            return [shortened(inner) for inner in value]
        case float() if isfinite(value):
            return float(f"{value:.4g}") if abs(value) < 1000 else round(value)
        case _:
            return value
