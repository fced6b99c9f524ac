"""The bootstrap, as a pipeline: a model learns from noisy web pairs, cleans them, and learns again."""

import functools

from kfp import dsl

from components.capfilt import capfilt
from components.evaluate import evaluate
from components.image import IMAGE, REVISION
from components.ingest import ingest
from components.register import register
from components.report import report
from components.train import train
from pipelines.placement import POOL, TOLERATIONS, on_cpu, on_gpu


@dsl.pipeline(name="bootstrap")
def bootstrap(
    store: str,
    source: str = "shapes",
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
    """Bootstraps a vision-language model from noisy web image-text pairs (BLIP, sections 3.2 and 3.3).

    1. ingest: read gold, web and test pairs into shards, train the tokenizer
    2. pretrain: learn ITC, ITM and LM on web and gold
    3. captioner: fine-tune on gold to describe an image
    4. filter: fine-tune on gold to tell a text that matches from one that does not
    5. capfilt: caption every web image, keep the texts that match
    6. pretrain-again: learn from scratch on what was kept and gold
    7. evaluate-before: retrieve and describe the test images with the first model
    8. evaluate-after: the same with the second model
    9. register: let the better model through the gate into the registry
    10. report: put figures, curves and pictures on one page

    Of the parameters `gpus` to `tolerations` are for each step's own pod. `jobs` are for pods that a step asks for and then only watches:
    `nodes=4` trains over four nodes, `workers=16` lets as many pods caption, filter and judge, one process a GPU; `gpus=8`, `cpu=88`,
    `memory=900Gi`, `pool={label: value}` and `tolerations=[...]` say what each of them gets. Without `nodes` a training, without `workers`
    the rest is done in the step's own pod. `max_gpu_hours` stops the run, with a checkpoint, once all of it has taken so many.
    """
    on_small = functools.partial(on_cpu, image=image)
    on_large = functools.partial(
        on_gpu, image=image, gpus=gpus, gpu_type=gpu_type, cpu=cpu, memory=memory, pool=pool, tolerations=tolerations
    )
    settings = {"preset": preset, "overrides": overrides, "revision": revision}
    elsewhere = {**settings, "store": store, "max_gpu_hours": max_gpu_hours, "jobs": jobs, "image": image}
    learn = functools.partial(train, **elsewhere)

    shards = on_small(ingest(**settings, source=source, store=store), name="ingest").outputs
    first = on_large(learn(stage="pretrain", data=shards["data"]), name="pretrain").outputs
    captioner = on_large(learn(stage="captioner", data=shards["data"], init=first["model"]), name="captioner").outputs
    filter = on_large(learn(stage="filter", data=shards["data"], init=first["model"]), name="filter").outputs

    models = {"captioner": captioner["model"], "filter": filter["model"]}
    clean = on_large(capfilt(**elsewhere, **models, data=shards["data"]), name="capfilt").outputs
    final = on_large(learn(stage="pretrain", data=clean["kept"]), name="pretrain-again").outputs

    before = on_large(evaluate(**elsewhere, data=shards["data"], model=first["model"]), name="evaluate-before").outputs
    after = on_large(evaluate(**elsewhere, data=shards["data"], model=final["model"]), name="evaluate-after").outputs
    scores = {"before": before["metrics"], "after": after["metrics"]}
    gate = on_small(register(**settings, **scores, name=name, model=final["model"]), name="register").outputs

    steps = {"ingest": shards, "pretrain": first, "captioner": captioner, "filter": filter, "capfilt": clean, "again": final}
    figures = {step: outputs["metrics"] for step, outputs in steps.items()}
    made = {**figures, **scores, "register": gate["metrics"], "data": shards["data"], "kept": clean["kept"]}
    on_small(report(**made, name=name, store=store, revision=revision), name="report")
