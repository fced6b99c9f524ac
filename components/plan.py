"""Plan: all settings, checked before anything runs, and what lies where they point."""

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
    """Finds for each stage the settings that are its own, with a key that changes as soon as the stage must run again."""
    from blip.runs.plan import plan

    settings = plan(name, source, preset, overrides, max_gpu_hours)
    stages = ("ingest", "pretrain", "captioner", "filter", "capfilt", "select", "evaluate", "register", "report")
    return tuple(settings[stage] for stage in stages)
