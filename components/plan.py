"""Plan: checks all settings before anything runs."""

from typing import NamedTuple

from components.image import step


@step
def plan(name: str, source: str, preset: str, overrides: list[str], max_gpu_hours: float) -> NamedTuple(  # pyright: ignore[reportInvalidTypeForm]
    "Plan",
    [
        ("ingest", list),
        ("pretrain", list),
        ("captioner", list),
        ("filter", list),
        ("capfilt", list),
        ("select", list),
        ("evaluate", list),
        ("register", list),
        ("report", list),
    ],
):
    """Returns each stage's own settings with its cache key, which changes if the stage must run again."""
    from blip.runs.plan import plan

    settings = plan(name, source, preset, overrides, max_gpu_hours)
    stages = ("ingest", "pretrain", "captioner", "filter", "capfilt", "select", "evaluate", "register", "report")
    return tuple(settings[stage] for stage in stages)
