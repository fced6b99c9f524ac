"""Plan of a downstream task: checks all settings before anything is trained."""

from typing import NamedTuple

from components.image import step


@step
def plan_downstream(
    name: str,
    task: str,
    tasks: list[str],
    preset: str,
    overrides: list[str],
    store: str,
    placement: str,
    max_gpu_hours: float,
) -> NamedTuple(  # pyright: ignore[reportInvalidTypeForm]
    "Plan",
    [
        ("stage", str),
        ("settings", list),
        ("gpus", str),
        ("gpu_type", str),
        ("cpu", str),
        ("memory", str),
        ("pool", dict),
        ("tolerations", list),
    ],
):
    """Returns the stage of one of the `tasks`, the settings of its steps with keys that change if they must run again,
    and what the pods of steps that train or predict ask for.
    """
    from blip.launch.resources import Resources
    from blip.runs.downstream import plan_downstream
    from blip.runs.stages import overrides_for, without_placement

    stage, settings = plan_downstream(name, task, tasks, preset, without_placement(overrides))
    resources = Resources.of(placement, overrides_for("placement", overrides), max_gpu_hours)
    resources.save(store)
    return (stage, settings, *resources.placement.requests())
