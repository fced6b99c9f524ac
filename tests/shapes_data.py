"""The world of shapes in a data folder, for tests of what reads one."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from blip.runs.context import RunContext
from blip.runs.ingest import ingest


def shapes_data(root: Path, settings: Sequence[str]) -> Path:
    """Returns the data folder of a world with these settings of `ingest`, untracked, by the store `root/store`."""
    context = RunContext(preset="shapes", overrides=tuple(settings), store=str(root / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        ingest(context, "shapes", out=root / "data")
    return root / "data"
