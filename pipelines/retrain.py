"""The retraining, as a pipeline: what came to the web shards since the last run goes through a bootstrap of its own."""

import inspect
from typing import Any, cast

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.find_new_shards import find_new_shards
from pipelines.bootstrap import bootstrap
from pipelines.parameters import steps
from pipelines.placement import not_cached, on_cpu

# kfp's types do not say what the decorator makes of a function
BOOTSTRAP = cast(GraphComponent, bootstrap)
STEPS = "\n".join(f"{step.number + 1}. {step.name}: {step.purpose}" for step in steps(BOOTSTRAP))
PARAMETERS = inspect.signature(BOOTSTRAP.pipeline_func).parameters
"""Those of the bootstrap; where the web pairs lie is not asked but found."""


def retrain(*given: Any):
    """Looks, and runs the bootstrap on what it found; it is given a value for each of PARAMETERS but the source, in their order."""
    values = dict(zip([name for name in PARAMETERS if name != "source"], given, strict=True))
    settings = {key: values[key] for key in ("name", "preset", "overrides", "store")}
    found = not_cached(on_cpu(find_new_shards(**settings), image=values["image"], name="find-new-shards"))
    with dsl.If(found.outputs["Output"] > 0, name="new shards"):
        BOOTSTRAP(**values, source=found.outputs["manifest"])


# kfp reads a pipeline's parameters from its function's signature
retrain.__signature__ = inspect.Signature([one for name, one in PARAMETERS.items() if name != "source"])  # pyright: ignore
retrain = dsl.pipeline(
    retrain,
    name="retrain",
    description="Bootstraps on the web shards that no finished run has learnt from, and does nothing, saying so, when there are none."
    f"\n\n1. find-new-shards: find the web shards that no finished run was trained on\n{STEPS}",
)
