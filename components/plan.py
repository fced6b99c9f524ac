"""Plan: checks all settings before anything runs."""

from typing import NamedTuple

from components.image import step


@step
def plan(
    pipeline: str,
    name: str,
    source: str,
    preset: str,
    overrides: list[str],
    store: str,
    placement: str,
    max_gpu_hours: float,
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
        ("frozen", list),
        ("blip2_stage1", list),
        ("blip2_stage2", list),
        ("blip2_stage2_t5", list),
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
    pods of steps that train or predict ask for. A stage that is not of the `pipeline` has none.
    """
    from blip.launch.resources import Resources
    from blip.runs.plan import plan
    from blip.runs.stages import PIPELINES, PLANNED, overrides_for, without_placement

    settings = plan(name, source, preset, without_placement(overrides), PIPELINES[pipeline])
    resources = Resources.of(placement, overrides_for("placement", overrides), max_gpu_hours)
    resources.save(store)
    return (*(settings.get(stage, []) for stage in PLANNED), *resources.placement.requests())
