"""Plan: checks all settings before anything runs."""

from typing import NamedTuple

from components.image import step


@step
def plan(
    name: str, source: str, preset: str, overrides: list[str], store: str, placement: str, max_gpu_hours: float
) -> NamedTuple(  # pyright: ignore[reportInvalidTypeForm]
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
        ("gpus", str),
        ("gpu_type", str),
        ("cpu", str),
        ("memory", str),
        ("pool", dict),
        ("tolerations", list),
    ],
):
    """Returns each stage's own settings with its cache key, which changes if the stage must run again, and what the
    pods of steps that train or predict ask for.
    """
    from blip.launch.resources import Resources
    from blip.runs.plan import plan
    from blip.runs.stages import overrides_for, without_placement

    settings = plan(name, source, preset, without_placement(overrides))
    resources = Resources.of(placement, overrides_for("placement", overrides), max_gpu_hours)
    resources.save(store)
    stages = ("ingest", "pretrain", "captioner", "filter", "capfilt", "select", "evaluate", "register", "report")
    return (*(settings[stage] for stage in stages), *resources.placement.requests())
