"""The options that all verbs have, and what becomes of what a verb returns."""

import os
from collections.abc import Callable
from inspect import Signature, signature
from typing import Annotated, Any

import typer

from blip.cli.output import print_result

JSON = "blip.json"
"""Whether results are printed as JSON, in the `meta` of the program's context."""


def log_less(value: bool) -> bool:
    """Leaves out messages and progress, in the processes that this one starts too."""
    if value:
        from blip import logs

        os.environ["BLIP_LOG"] = "quiet"
        logs.quiet()
    return value


AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON value. Logs and progress go to standard error.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", callback=log_less, help="Log warnings and errors alone, and show no progress.")
]


def as_verb(function: Callable[..., Any]) -> Callable[..., None]:
    """Returns a function with the options of all verbs, which prints what `function` returns."""

    def verb(context: typer.Context, *, as_json: AsJson = False, quiet: Quiet = False, **options: Any) -> None:  # noqa: ARG001
        print_result(function(**options), as_json or context.meta[JSON])

    added = [option for option in signature(verb).parameters.values() if option.kind is not option.VAR_KEYWORD]
    options = [option.replace(kind=option.KEYWORD_ONLY) for option in signature(function).parameters.values()]
    verb.__signature__ = Signature([*added[:1], *options, *added[1:]])  # pyright: ignore[reportFunctionMemberAccess]
    verb.__annotations__ = {option.name: option.annotation for option in [*added, *options]}
    verb.__name__, verb.__doc__ = function.__name__, function.__doc__
    return verb
