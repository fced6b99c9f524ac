"""The run context of a step."""

from collections.abc import Sequence
from typing import Any


def stage_context(stage: str, preset: str, settings: Sequence[str], store: str = "", max_gpu_hours: float = 0.0) -> Any:
    """Returns the RunContext of a stage, with its own settings among all `stage.key=value`."""
    from blip.runs.context import RunContext
    from blip.runs.stages import overrides_for
    from components.revision import revision

    overrides = tuple(overrides_for(stage, settings, max_gpu_hours))
    return RunContext(preset=preset, overrides=overrides, store=store, revision=revision())
