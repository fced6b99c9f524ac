"""The bootstrap pipeline: trains a model on noisy web pairs, cleans them with it, and trains again."""

import functools

from kfp import dsl

from components.capfilt import capfilt
from components.evaluate import evaluate
from components.image import image as newest_image
from components.ingest import ingest
from components.plan import plan
from components.register import register
from components.report import report
from components.select import select
from components.train import train
from pipelines.placement import POOL, TOLERATIONS, not_cached, on_cpu, on_gpu


@dsl.pipeline(name="bootstrap")
def bootstrap(
    store: str,
    source: str = "shapes",
    preset: str = "shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip",
    image: str = newest_image(),
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
    the key.

    The parameters `gpus` to `tolerations` apply to each step's own pod, `jobs` to further pods that a step starts and
    waits for: `nodes=4` trains on four nodes; `workers=16` captions, filters and evaluates with 16 pods, one process
    per GPU; `gpus=8`, `cpu=88`, `memory=900Gi`, `pool={label: value}` and `tolerations=[...]` are the resources of
    each. Without `nodes` the step's own pod trains; without `workers` it does the rest. `max_gpu_hours` stops the run,
    with a checkpoint, when all its steps together have used so many GPU hours.
    """
    on_small = functools.partial(on_cpu, image=image)
    on_large = functools.partial(
        on_gpu, image=image, gpus=gpus, gpu_type=gpu_type, cpu=cpu, memory=memory, pool=pool, tolerations=tolerations
    )
    planned = {"name": name, "source": source, "preset": preset, "overrides": overrides, "max_gpu_hours": max_gpu_hours}
    settings = not_cached(on_small(plan(**planned), name="plan")).outputs
    shared = {"preset": preset, "store": store, "max_gpu_hours": max_gpu_hours, "jobs": jobs, "image": image}

    def train_stage(stage: str, **inputs):
        return train(**shared, **inputs, stage=stage, settings=settings[stage])

    def evaluate_model(**inputs):
        return evaluate(**shared, **inputs, settings=settings["evaluate"])

    ingested = ingest(preset=preset, store=store, source=source, settings=settings["ingest"])
    shards = on_small(ingested, name="ingest").outputs
    first = on_large(train_stage("pretrain", data=shards["data"]), name="pretrain").outputs
    captioner = on_large(train_stage("captioner", data=shards["data"], init=first["model"]), name="captioner").outputs
    filter = on_large(train_stage("filter", data=shards["data"], init=first["model"]), name="filter").outputs

    models = {"captioner": captioner["model"], "filter": filter["model"]}
    captioned = capfilt(**shared, **models, data=shards["data"], settings=settings["capfilt"])
    scored = on_large(captioned, name="capfilt").outputs
    selected = select(preset=preset, scored=scored["scored"], settings=settings["select"])
    clean = on_small(selected, name="select").outputs
    final = on_large(train_stage("pretrain", data=clean["kept"]), name="pretrain-again").outputs

    before = on_large(evaluate_model(data=shards["data"], model=first["model"]), name="evaluate-before").outputs
    after = on_large(evaluate_model(data=shards["data"], model=final["model"]), name="evaluate-after").outputs
    scores = {"before": before["metrics"], "after": after["metrics"]}
    decided = register(**scores, name=name, preset=preset, model=final["model"], settings=settings["register"])
    gate = on_small(decided, name="register").outputs

    metrics = {
        "ingest": shards["metrics"],
        "pretrain": first["metrics"],
        "captioner": captioner["metrics"],
        "filter": filter["metrics"],
        "capfilt": scored["metrics"],
        "select": clean["metrics"],
        "again": final["metrics"],
        "register": gate["metrics"],
    }
    inputs = {**metrics, **scores, "data": shards["data"], "kept": clean["kept"]}
    on_small(report(**inputs, name=name, store=store, settings=settings["report"]), name="report")
