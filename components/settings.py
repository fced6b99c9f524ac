"""The settings of stages, checked on the machine that schedules a pipeline."""

from collections.abc import Mapping
from typing import Any


def mistakes(pipeline: str, arguments: Mapping[str, Any]) -> str:
    """Returns the mistakes in the settings that a pipeline's arguments give its stages, one per line, or an empty text.

    A run's first step says the same, but that of a schedule runs days later. Places that settings name are left to that
    step, which runs where they can be reached. The first call takes seconds, for imports.
    """
    from blip.config import ConfigError
    from blip.runs import stages
    from blip.runs.ingest import with_source

    names = {**stages.PIPELINES, "downstream": stages.DOWNSTREAM}.get(pipeline, stages.BOOTSTRAP)
    # the ingestions of single tasks are known to the first step of the downstream pipeline
    overrides = [o for o in stages.without_placement(arguments["overrides"]) if not o.startswith("ingest_")]
    others = [override for override in overrides if not override.startswith("ingest.")]
    try:
        ingest = stages.overrides_for("ingest", overrides)
        if "source" in arguments:
            ingest = with_source(arguments["source"], ingest)
        if "ingest" in names:
            others += [f"ingest.{override}" for override in ingest]
        stages.load_stages(arguments["preset"], others, names)
    except ConfigError as error:
        return str(error)
    return ""
