"""The run that a step belongs to, as the verbs take it."""

from collections.abc import Sequence
from typing import Any


def context(stage: str, preset: str, settings: Sequence[str], store: str = "", max_gpu_hours: float = 0.0) -> Any:
    """Returns the RunContext of a stage: of all settings `stage.key=value` those that are its own."""
    from blip.runs.context import RunContext
    from blip.runs.stages import overrides_for
    from components.revision import revision

    overrides = tuple(overrides_for(stage, settings, max_gpu_hours))
    return RunContext(preset=preset, overrides=overrides, store=store, revision=revision())
