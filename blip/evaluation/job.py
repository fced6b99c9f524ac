"""The job of an evaluation, and its workers' part: every shard is predicted and, where a task re-ranks, passed over once more."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from blip.batch import Example
from blip.budget import Budget, gpus_held
from blip.data.images import MAX_PIXELS, MOST_PIXELS, decode
from blip.data.sample import BadSample, Sample
from blip.data.transforms import eval_transform
from blip.data.verification import ShardError
from blip.distributed import device
from blip.evaluation.shard import EvaluationConfig, ShardPredictor, gather, quotas
from blip.logs import log
from blip.storage import Store, open_store
from blip.tasks.build import check_lengths
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.model_folder import load_task, read_model_config
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.task import EvaluableTask, P, Predict
from blip.workers.job import Job, WorkConfig
from blip.workers.queue import ShardQueue, finished, shard_records
from blip.workers.worker import Worker

PASSES = ("predict", "rerank")


class EvaluateConfig(WorkConfig):
    split: str = Field(default="test", pattern=r"^[\w./ -]+$")
    """The manifest to evaluate on; it becomes a part of metrics' names."""
    retrieval: RetrievalConfig | None = RetrievalConfig()
    """How images and texts are found; none leaves it out."""
    captioning: CaptioningConfig | None = CaptioningConfig()
    """How captions are written; none leaves it out."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """An image of more is a bad sample; baseline JPEGs are reduced instead. Bounds memory: decoding takes up to 16 bytes a pixel."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def something_is_evaluated(self) -> Self:
        if self.retrieval is None and self.captioning is None:
            raise ValueError("retrieval and captioning are both none: leave one of them in")
        return self


class EvaluationJob(Job[EvaluateConfig]):
    """The evaluation of one model on one split."""

    FORMAT: ClassVar[int] = 2

    type: Literal["evaluation"] = "evaluation"  # pyright: ignore[reportIncompatibleVariableOverride] (it is frozen)

    @property
    def quotas(self) -> dict[str, int]:
        """How many samples of each shard are evaluated."""
        return quotas(self.input, self.config.evaluation.limit)


def work(uri: str, name: str) -> None:
    """Works on the job of a folder in the store, together with others, until all its shards are predicted or set aside."""
    job = EvaluationJob.load(uri)
    with job.models["model"].folder() as folder:
        tasks, size = load_tasks(job.config, folder), image_size(folder)
    predict_all(job, open_store(uri), tasks, size, name)


Tasks = Mapping[str, EvaluableTask[Any, Any]]
"""Tasks by their type."""


def load_tasks(cfg: EvaluateConfig, model: str | Path) -> Tasks:
    """Returns the tasks that a model folder is evaluated as, by name.

    Raises ConfigError where texts or captions are longer than the model has positions.
    """
    if cfg.retrieval is not None:
        check_lengths(cfg.retrieval, read_model_config(model).model)
    tasks: dict[str, EvaluableTask[Any, Any]] = {}
    for task_cfg in (cfg.retrieval, cfg.captioning):
        if task_cfg is not None:
            task = load_task(model, task_cfg)
            assert isinstance(task, EvaluableTask)
            tasks[task_cfg.type] = task
    return tasks


def image_size(model: str | Path) -> int:
    """Returns height and width of the images that a model folder takes."""
    return read_model_config(model).model.vision.size


def predict_all(
    job: EvaluationJob, home: Store, tasks: Tasks, size: int, name: str, advance: Callable[[int], None] = lambda _: None
) -> None:
    """As `work`, with models that are loaded, which go to this process's device, and images of `size`.

    `advance` is called with the size of every batch.
    """
    budget = Budget(job.config.max_gpu_hours, open_store(job.ledger or f"{home.uri}/gpu-hours"), job.account, gpus_held())
    cfg, wanted, tally = job.config.evaluation, job.quotas, Counter[str]()
    shards = {shard.name: shard for shard in job.input.shards if shard.name in wanted}
    prepare = partial(example, size=size, max_pixels=job.config.max_pixels)

    began = time.monotonic()

    def run_pass(at: Store, task: EvaluableTask[Any, P], predict: Predict[P], before: Sequence[Sequence[P]] = ()) -> None:
        offsets = dict(zip(wanted, accumulate(map(len, before), initial=0), strict=False))
        process = ShardPredictor(task, predict, job.input.store, prepare, cfg.batch, wanted, offsets, advance, cfg.unexpected)
        queue = ShardQueue(at, list(wanted), name, job.config.lease)
        worker = Worker(
            queue,
            job.input.store,
            shards,
            process,
            report=job.config.report,
            before=budget.check,
            tally=tally,  # of all passes, as `began`
            prefetch=False,
            reports=home,
            began=began,
        )
        worker.run()

    try:
        for kind, task in tasks.items():
            task.to(device())
            first, *second = passes(home, kind, task)
            run_pass(first, task, lambda batch, _, task=task: task.predict(batch))
            for at in second:
                found = gather(first, list(wanted), task.prediction)
                if everything := list(chain.from_iterable(found)):
                    run_pass(at, task, task.rerank(everything), found)
    except ShardError as e:
        log.warning("%s", e)  # the process that asked for the evaluation will raise it; another worker could do no more
    finally:
        budget.record()


def passes(home: Store, kind: str, task: EvaluableTask[Any, Any]) -> list[Store]:
    """Returns the folder of each pass of a task over all samples: one, or two for a task that re-ranks."""
    return [home.join(kind, name) for name in PASSES[: 1 + task.needs_rerank]]


def predictions(job: EvaluationJob, home: Store, kind: str, task: EvaluableTask[Any, P]) -> list[P]:
    """Returns the predictions of a task's last pass, of all samples in the manifest's order.

    Raises ShardError where a shard is not done, or was set aside.
    """
    last = passes(home, kind, task)[-1]
    return list(chain.from_iterable(gather(last, list(job.quotas), task.prediction)))


def counted(job: EvaluationJob, home: Store, tasks: Tasks) -> tuple[int, dict[str, int]]:
    """Returns how many samples were evaluated, and how many were not, by reason. Raises as `predictions`."""
    kind, task = next(iter(tasks.items()))
    done, _ = finished(passes(home, kind, task)[0], list(job.quotas))
    left_out = sum((Counter(record["rejected"]) for record in done.values()), Counter())
    return sum(record["samples"] for record in done.values()), dict(left_out)


def samples_done(job: EvaluationJob, home: Store, tasks: Tasks) -> int:
    """Returns how many samples are done, counted once for each pass."""
    wanted = job.quotas  # what was left out counts as asked for: a tar may hold more that is no sample than its manifest counts
    done = (shard_records(at, list(wanted))[0] for kind, task in tasks.items() for at in passes(home, kind, task))
    return sum(wanted[name] for part in done for name in part)


def example(sample: Sample, size: int, max_pixels: int = MAX_PIXELS) -> Example:
    """Returns a sample as evaluation needs it: its whole image and all its texts. Raises BadSample."""
    texts = [text for text in sample.texts if text.strip()]
    if not texts:
        raise BadSample("empty text")
    return Example(sample.key, eval_transform(size)(decode(sample.images[0], max_pixels)), texts, sample.meta, sample.id)
