"""Plan of BLIP-2: checks all settings before anything runs."""

from typing import NamedTuple

from components.image import step


@step
def plan_blip2(
    name: str, source: str, preset: str, overrides: list[str], store: str, placement: str, max_gpu_hours: float
) -> NamedTuple(  # pyright: ignore[reportInvalidTypeForm]
    "Plan",
    [
        ("ingest", list),
        ("frozen", list),
        ("blip2_stage1", list),
        ("blip2_stage2", list),
        ("blip2_stage2_t5", list),
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
    """Returns what `plan` returns, of the stages of BLIP-2."""
    from blip.launch.resources import Resources
    from blip.runs.plan import plan
    from blip.runs.stages import BLIP2, overrides_for, without_placement

    settings = plan(name, source, preset, without_placement(overrides), BLIP2)
    resources = Resources.of(placement, overrides_for("placement", overrides), max_gpu_hours)
    resources.save(store)
    return (*(settings[stage] for stage in (*BLIP2, "report")), *resources.placement.requests())
