"""The bootstrap pipeline: trains a model on noisy web pairs, cleans them with it, and trains again."""

from kfp import dsl

from components.capfilt import capfilt
from components.evaluate import evaluate
from components.ingest import ingest
from components.plan import plan
from components.register import register
from components.report import report
from components.select import select
from components.train import train
from pipelines.placement import not_cached, on_cpu, on_placement


@dsl.pipeline(name="bootstrap")
def bootstrap(
    store: str,
    source: str = "shapes",
    preset: str = "shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip",
    placement: str = "cpu",
    max_gpu_hours: float = 0.0,
):
    """Bootstraps a vision-language model from noisy web image-text pairs (BLIP, sections 3.2 and 3.3).

    1. plan: check all settings and the files that they name
    2. ingest: read gold, web and test pairs into shards, train the tokenizer
    3. pretrain: learn ITC, ITM and LM on web and gold
    4. captioner: fine-tune on gold to describe an image
    5. filter: fine-tune on gold to tell a text that matches from one that does not
    6. capfilt: caption every web image, score how well each text matches
    7. select: keep the texts that match
    8. pretrain-again: learn from scratch on what was kept and gold
    9. evaluate-before: retrieve and describe the test images with the first model
    10. evaluate-after: the same with the second model
    11. register: let the better model through the gate into the registry
    12. report: put figures, curves and pictures on one page

    A step runs again if its settings, its inputs, or files and objects that its settings name have changed. The plan
    runs each time and passes each step its settings with a key that covers them; the code's revision is not part of
    the key. What a step makes lies in the store, and its URI is the input of others.

    `placement` names where steps train and predict, such as `cpu`, `a100` or a name of the cluster's own; `overrides`
    change it, such as `placement.gpus=8` or `placement.memory=128Gi`. `placement.nodes=4` trains in jobs of four such
    nodes, `placement.workers=16` captions, filters and evaluates in jobs of 16 such pods. `max_gpu_hours` stops the
    run, with a checkpoint, when all its steps together have used so many GPU hours.
    """
    parameters = {"name": name, "source": source, "preset": preset, "overrides": overrides, "store": store}
    planned = plan(pipeline="bootstrap", **parameters, placement=placement, max_gpu_hours=max_gpu_hours)
    settings = not_cached(on_cpu(planned, "plan")).outputs
    shared = {"preset": preset, "store": store}

    def small(task: dsl.PipelineTask, name: str):
        return on_cpu(task, name).outputs["Output"]

    def large(task: dsl.PipelineTask, name: str):
        return on_placement(task, name, settings).outputs["Output"]

    data = small(ingest(**shared, source=source, settings=settings["ingest"]), "ingest")
    first = large(train(**shared, stage="pretrain", settings=settings["pretrain"], data=data), "pretrain")
    tuned = {"data": data, "init": first}
    captioner = large(train(**shared, stage="captioner", settings=settings["captioner"], **tuned), "captioner")
    filter = large(train(**shared, stage="filter", settings=settings["filter"], **tuned), "filter")

    models = {"captioner": captioner, "filter": filter}
    scored = large(capfilt(**shared, settings=settings["capfilt"], data=data, **models), "capfilt")
    kept = small(select(**shared, settings=settings["select"], scored=scored), "select")
    final = large(train(**shared, stage="pretrain", settings=settings["pretrain"], data=kept), "pretrain-again")

    before = large(evaluate(**shared, settings=settings["evaluate"], data=data, model=first), "evaluate-before")
    after = large(evaluate(**shared, settings=settings["evaluate"], data=data, model=final), "evaluate-after")
    gate = {"name": name, "model": final, "before": before, "after": after}
    decision = small(register(**shared, settings=settings["register"], **gate), "register")
    on_cpu(report(name=name, store=store, settings=settings["report"], decision=decision), "report")
