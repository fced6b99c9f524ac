"""The outputs of a step, as kfp.local returns them."""

from pathlib import Path
from typing import Any

from kfp import dsl

from components.revision import revision

ALARMS = "alarms"
"""The key of a step's alarms in the metadata of its page."""
REVISION_FILE = "revision.txt"
"""The file beside a step's artifacts that holds the revision of the code that made them."""

Outputs = dict[str, Any]


def artifacts(outputs: Outputs) -> dict[str, Path]:
    """Returns the paths of a step's artifacts by name."""
    return {name: Path(value.path) for name, value in outputs.items() if isinstance(value, dsl.Artifact)}


def alarms(outputs: Outputs) -> list[str]:
    """Returns the alarms of a step, which stand in the metadata of its page."""
    return [alarm for page in pages(outputs) for alarm in page.metadata.get(ALARMS, [])]


def pages(outputs: Outputs) -> list[dsl.HTML]:
    """Returns a step's page, if it has one; the interface shows it by the output's name, which differs by component."""
    return [value for value in outputs.values() if isinstance(value, dsl.HTML)]


def other_revision(outputs: Outputs) -> str:
    """Returns ` by revision R` for cached outputs that another revision of the code made, else an empty string."""
    paths = artifacts(outputs).values()
    files = {folder / REVISION_FILE for path in paths for folder in (path.parent, path.parent.parent)}
    revisions = {file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return f" by revision {revisions.pop()}" if revisions and revisions != {revision()} else ""
