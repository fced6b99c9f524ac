"""What a check found."""

from dataclasses import dataclass
from typing import Literal

Condition = Literal["ok", "note", "warning", "fault"]
"""Right; not used here; works worse than it could; does not work."""


@dataclass(frozen=True)
class Finding:
    """The state of one thing."""

    what: str
    state: Condition
    found: str
    """What is there, in a few words."""
    remedy: str = ""
    """What to do about it; empty if there is nothing to do."""


def worst_exit_code(findings: list[Finding]) -> int:
    """Returns 42 if something does not work, 1 if something works worse than it could, else 0."""
    states = {finding.state for finding in findings}
    return 42 if "fault" in states else 1 if "warning" in states else 0
