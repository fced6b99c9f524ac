"""Errors of a configuration, and the form of their messages."""

import reprlib
from typing import Any

EXIT_CONFIG = 42
"""Exit code for a wrong configuration: the same command cannot succeed."""
MAX_LINE_LENGTH = 700
"""Characters of an error."""
MAX_SHOWN_LENGTH = 120
"""Characters of a value in an error."""


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the value, the rule and the way out."""


def short_repr(value: Any) -> str:
    """Returns a value on one line, truncated."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = MAX_SHOWN_LENGTH
    return short.repr(value)


def one_line(text: str) -> str:
    """Returns a message on one line, truncated."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_LENGTH else f"{line[: MAX_LINE_LENGTH - 4]} ..."
