"""The retraining, as a pipeline: what came to the web shards since the last run goes through a bootstrap of its own."""

from typing import cast

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.image import IMAGE, REVISION
from components.look import look
from pipelines.bootstrap import bootstrap
from pipelines.parameters import steps
from pipelines.placement import POOL, TOLERATIONS, on_cpu

# kfp's types do not say what the decorator makes of a function
BOOTSTRAP = cast(GraphComponent, bootstrap)
STEPS = "\n".join(f"{step.number + 1}. {step.name}: {step.purpose}" for step in steps(BOOTSTRAP))


@dsl.pipeline(
    name="retrain",
    description="Bootstraps on the web shards that no finished run has learnt from, and does nothing, saying so, when there are none.\n\n"
    f"1. look: find the web shards that no finished run has learnt from\n{STEPS}",
)
def retrain(
    store: str,
    preset: str = "shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip",
    revision: str = REVISION,
    image: str = IMAGE,
    gpus: str = "1",
    gpu_type: str = "nvidia.com/gpu",
    cpu: str = "8",
    memory: str = "64Gi",
    pool: dict = POOL,
    tolerations: list = TOLERATIONS,
    max_gpu_hours: float = 0.0,
    jobs: list[str] = [],  # noqa: B006
):
    settings = {"name": name, "preset": preset, "overrides": overrides, "store": store, "revision": revision}
    place = {"image": image, "gpus": gpus, "gpu_type": gpu_type, "cpu": cpu, "memory": memory, "pool": pool, "tolerations": tolerations}

    found = on_cpu(look(**settings), image=image, name="look")
    # what there is now is not what there was: no cache can answer for this step
    found.set_caching_options(False)
    with dsl.If(found.outputs["Output"] > 0, name="new shards"):
        BOOTSTRAP(**settings, **place, source=found.outputs["manifest"], max_gpu_hours=max_gpu_hours, jobs=jobs)
