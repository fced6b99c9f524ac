"""The retraining pipeline: bootstraps on the web shards that have arrived since the last run."""

import inspect
from typing import Any, cast

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.find_new_shards import find_new_shards
from pipelines.bootstrap import bootstrap
from pipelines.parameters import steps
from pipelines.placement import not_cached, on_cpu

# kfp's types do not state the return type of its decorator
BOOTSTRAP = cast(GraphComponent, bootstrap)
STEPS = "\n".join(f"{step.number + 1}. {step.name}: {step.purpose}" for step in steps(BOOTSTRAP))
PARAMETERS = {
    name: parameter.replace(default=inspect.Parameter.empty) if name in ("preset", "overrides") else parameter
    for name, parameter in inspect.signature(BOOTSTRAP.pipeline_func).parameters.items()
    if name != "source"
}
"""The parameters of the bootstrap except `source`, which is not asked for but found. `preset` and `overrides` have no
default, since the world of shapes never has new shards: the overrides name the places of tars."""
IN_ORDER = dict(sorted(PARAMETERS.items(), key=lambda item: item[1].default is not inspect.Parameter.empty))
"""The same, those without a default first."""


def find_and_bootstrap(*given: Any):
    """Finds new shards and bootstraps on them, given a value for each of IN_ORDER."""
    values = dict(zip(IN_ORDER, given, strict=True))
    settings = {key: values[key] for key in ("name", "preset", "overrides", "store")}
    found = not_cached(on_cpu(find_new_shards(**settings), "find-new-shards")).outputs
    with dsl.If(found["Output"] > 0, name="new shards"):
        BOOTSTRAP(**values, source=found["manifest"])


# kfp reads a pipeline's parameters from its function's signature
find_and_bootstrap.__signature__ = inspect.Signature(list(IN_ORDER.values()))  # pyright: ignore
retrain = dsl.pipeline(
    find_and_bootstrap,
    name="retrain",
    description="Bootstraps on the web shards that no finished run was trained on; without new shards it does nothing."
    f"\n\n1. find-new-shards: find the web shards that no finished run was trained on\n{STEPS}",
)
