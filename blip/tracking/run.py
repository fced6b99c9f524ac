"""The interface of a tracked run, and the form of its values."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

MAX_PARAM_LENGTH = 500
"""Characters of a value that every version of MLflow accepts."""


class DataInput(NamedTuple):
    """A dataset that a run reads, as MLflow's column *Dataset* shows it."""

    name: str
    digest: str
    source: str
    """URI of its shards."""
    context: str
    """Its purpose, such as `training`."""
    samples: int


class Run:
    """No-op run: tracking is off, or this is not rank 0."""

    id = ""
    url = ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters, nested ones under their path such as `optimizer.lr`; long values are truncated."""

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        """Logs one point of each curve. Returns at once; points are written every two seconds."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags; a later value replaces an earlier one."""

    def inputs(self, data: Iterable[DataInput]) -> None:
        """Logs the datasets that the run reads."""

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Copies a file to the run's artifacts. The file must not change before the run ends."""

    def artifacts(self, path: str | Path, folder: str = "") -> None:
        """Copies the contents of a folder to the run's artifacts, as `artifact`."""


def flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested parameters as pairs of path and value; an empty section is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def truncate(value: Any) -> str:
    """Returns a value as text of at most MAX_PARAM_LENGTH characters."""
    is_nested = isinstance(value, (list, tuple, Mapping))
    text = json.dumps(value, default=str) if is_nested else str(value)
    text = text.encode(errors="replace").decode()  # MLflow refuses names that are not UTF-8
    return text if len(text) <= MAX_PARAM_LENGTH else f"{text[: MAX_PARAM_LENGTH - 1]}…"
