"""The pipeline of BLIP-2: a Q-Former learns to find in images what texts say, for frozen language models to read."""

from kfp import dsl

from components.ingest import ingest
from components.make_frozen import make_frozen
from components.plan import plan
from components.report_blip2 import report_blip2
from pipelines.blip2_steps import STAGES, Blip2Steps
from pipelines.placement import not_cached, on_cpu


@dsl.pipeline(name="blip2")
def blip2(
    store: str,
    source: str = "shapes",
    preset: str = "blip2_shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip2",
    placement: str = "cpu",
    max_gpu_hours: float = 0.0,
):
    """Joins a frozen image encoder and frozen language models by a Q-Former (BLIP-2, sections 3.2 and 3.3).

    1. plan: check all settings and the files that they name
    2. ingest: read gold, web and test pairs into shards, train the tokenizer
    3. frozen: train small frozen models, unless the settings name others
    4. features: keep the features that the first stage trains on, if its settings ask for them
    5. stage1: learn to find in images what texts say
    6. stage2-opt: let a frozen decoder-only language model read what is found
    7. stage2-opt-alone: the same without the first stage
    8. stage2-t5: let a frozen language model with an encoder read what is found
    9. stage2-t5-alone: the same without the first stage
    10. evaluate-opt: describe the test images, answer questions about them
    11. evaluate-opt-alone: the same without the first stage
    12. evaluate-t5: describe the test images, answer questions about them
    13. evaluate-t5-alone: the same without the first stage
    14. register-opt: let the model through the gate into the registry
    15. register-t5: let the model through the gate into the registry
    16. report: put figures, curves and pictures on one page

    Settings, caching, `placement` and `max_gpu_hours` are as of the bootstrap. The gate of each language model compares
    its model with the one that had no first stage, and with the champion of its name.
    """
    parameters = {"name": name, "source": source, "preset": preset, "overrides": overrides, "store": store}
    planned = plan(pipeline="blip2", **parameters, placement=placement, max_gpu_hours=max_gpu_hours)
    settings = not_cached(on_cpu(planned, "plan")).outputs
    shared = {"preset": preset, "store": store}
    data = on_cpu(ingest(**shared, source=source, settings=settings["ingest"]), "ingest").outputs["Output"]
    frozen = on_cpu(make_frozen(**shared, settings=settings["frozen"]), "frozen").outputs["Output"]
    steps = Blip2Steps(settings, shared, test=data, frozen=frozen)
    first = steps.first_stage(data)
    decisions = {}
    for kind in STAGES:
        joined = steps.second_stage(kind, data, init=first)
        alone = steps.second_stage(kind, data, "-alone")
        decisions[kind] = steps.gate(name, kind, joined, alone)
    on_cpu(report_blip2(store=store, settings=settings["report"], **decisions), "report")
