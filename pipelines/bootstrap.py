"""The bootstrap, as a pipeline: a model learns from noisy web pairs, cleans them, and learns again."""

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

    1. plan: check all settings, see what lies where they point
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

    A step runs again when its settings, its inputs, or files and objects that its settings name have changed. The plan sees to that: it
    runs each time and hands each step its own settings with a key. The code's revision is not in the key.

    Of the parameters `gpus` to `tolerations` are for each step's own pod. `jobs` are for pods that a step asks for and then only watches:
    `nodes=4` trains over four nodes, `workers=16` lets as many pods caption, filter and judge, one process a GPU; `gpus=8`, `cpu=88`,
    `memory=900Gi`, `pool={label: value}` and `tolerations=[...]` say what each of them gets. Without `nodes` a training, without `workers`
    the rest is done in the step's own pod. `max_gpu_hours` stops the run, with a checkpoint, once all of it has taken so many.
    """
    on_small = functools.partial(on_cpu, image=image)
    on_large = functools.partial(
        on_gpu, image=image, gpus=gpus, gpu_type=gpu_type, cpu=cpu, memory=memory, pool=pool, tolerations=tolerations
    )
    asked = {"name": name, "source": source, "preset": preset, "overrides": overrides, "max_gpu_hours": max_gpu_hours}
    settings = not_cached(on_small(plan(**asked), name="plan")).outputs
    elsewhere = {"preset": preset, "store": store, "max_gpu_hours": max_gpu_hours, "jobs": jobs, "image": image}

    def learn(stage: str, **inputs):
        return train(**elsewhere, **inputs, stage=stage, settings=settings[stage])

    def judge(**inputs):
        return evaluate(**elsewhere, **inputs, settings=settings["evaluate"])

    read = ingest(preset=preset, store=store, source=source, settings=settings["ingest"])
    shards = on_small(read, name="ingest").outputs
    first = on_large(learn("pretrain", data=shards["data"]), name="pretrain").outputs
    captioner = on_large(learn("captioner", data=shards["data"], init=first["model"]), name="captioner").outputs
    filter = on_large(learn("filter", data=shards["data"], init=first["model"]), name="filter").outputs

    models = {"captioner": captioner["model"], "filter": filter["model"]}
    captioned = capfilt(**elsewhere, **models, data=shards["data"], settings=settings["capfilt"])
    scored = on_large(captioned, name="capfilt").outputs
    clean = on_small(select(preset=preset, scored=scored["scored"], settings=settings["select"]), name="select").outputs
    final = on_large(learn("pretrain", data=clean["kept"]), name="pretrain-again").outputs

    before = on_large(judge(data=shards["data"], model=first["model"]), name="evaluate-before").outputs
    after = on_large(judge(data=shards["data"], model=final["model"]), name="evaluate-after").outputs
    scores = {"before": before["metrics"], "after": after["metrics"]}
    decided = register(**scores, name=name, preset=preset, model=final["model"], settings=settings["register"])
    gate = on_small(decided, name="register").outputs

    learnt = {"ingest": shards, "pretrain": first, "captioner": captioner, "filter": filter}
    cleaned = {"capfilt": scored, "select": clean, "again": final}
    figures = {step: outputs["metrics"] for step, outputs in {**learnt, **cleaned}.items()}
    made = {**figures, **scores, "register": gate["metrics"], "data": shards["data"], "kept": clean["kept"]}
    on_small(report(**made, name=name, store=store, settings=settings["report"]), name="report")
