"""The job of an evaluation: its settings, the worker that predicts its shards, and its predictions."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator
from torch import Tensor

from blip.budget import Budget, gpus_held
from blip.data.images import MAX_PIXELS, MOST_PIXELS, decode
from blip.data.transforms import eval_transform
from blip.distributed import device
from blip.evaluation.shard import EvaluationConfig, ShardPredictor, quotas, read_predictions
from blip.logs import log
from blip.models.blip2 import Blip2Config
from blip.models.med import MEDConfig
from blip.shards.verification import ShardError
from blip.storage import Store, open_store
from blip.tasks.blip2_retrieval import Blip2RetrievalConfig
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.dialog import DialogConfig
from blip.tasks.model_folder import load_task, read_model_config
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.task import EvaluableTask, P, Predict
from blip.tasks.video import VideoQAConfig, VideoRetrievalConfig
from blip.tasks.vqa import VQAConfig
from blip.workers.job import Job, WorkConfig
from blip.workers.queue import ShardQueue, finished, shard_records
from blip.workers.worker import Worker

TaskName = Literal["retrieval", "captioning", "vqa", "nlvr", "dialog", "video_retrieval", "video_qa"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""The tasks that can be evaluated."""
PASSES = ("predict", "rerank")
"""The passes of a task over all samples; the second only for tasks that re-rank."""


class EvaluateConfig(WorkConfig):
    split: str = Field(default="test", pattern=r"^[\w./ -]+$")
    """The name of the manifest to evaluate on; it is a part of the metrics' names."""
    tasks: tuple[TaskName, ...] = ("retrieval", "captioning")
    """The tasks to evaluate; the settings of all others are none."""
    retrieval: Annotated[RetrievalConfig | Blip2RetrievalConfig, Field(discriminator="type")] | None = RetrievalConfig()
    """Settings of retrieval; none skips it."""
    captioning: Annotated[CaptioningConfig | Blip2Stage2Config, Field(discriminator="type")] | None = CaptioningConfig()
    """Settings of captioning; none skips it."""
    vqa: Annotated[VQAConfig | Blip2VQAConfig, Field(discriminator="type")] | None = VQAConfig()
    """Settings of visual question answering."""
    nlvr: NLVRConfig | None = NLVRConfig()
    """Settings of NLVR2."""
    dialog: DialogConfig | None = DialogConfig()
    """Settings of visual dialog."""
    video_retrieval: VideoRetrievalConfig | None = VideoRetrievalConfig()
    """Settings of retrieval among videos."""
    video_qa: VideoQAConfig | None = VideoQAConfig()
    """Settings of questions about videos."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """Most pixels of an image. Baseline JPEGs with more are downscaled, other images are bad samples.

    Bounds memory: decoding takes up to 16 bytes per pixel."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="before")
    @classmethod
    def other_tasks_have_no_settings(cls, values: Any) -> Any:
        """Sets the settings of tasks that are not evaluated to none: they are no part of the job's identity."""
        if not isinstance(values, dict):
            return values
        tasks = values.get("tasks", cls.model_fields["tasks"].default)
        named = tasks if isinstance(tasks, list | tuple) else ()
        return values | dict.fromkeys((name for name in TASKS if name not in named), None)

    @model_validator(mode="after")
    def something_is_evaluated(self) -> Self:
        if not self.task_configs:
            raise ValueError(
                f"nothing is evaluated: the settings of {', '.join(self.tasks) or 'no task'} are none; "
                f"set tasks to some of {', '.join(TASKS)}"
            )
        return self

    @property
    def task_configs(self) -> dict[str, TaskConfig]:
        """The settings of the evaluated tasks by name."""
        found = {name: getattr(self, name) for name in TASKS}
        return {name: cfg for name, cfg in found.items() if cfg is not None}

    def fitted(self, model: MEDConfig | Blip2Config) -> Self:
        """Returns the settings for a model: those of BLIP-2's task of the same name where the model is a BLIP-2.

        What both tasks have stays as it is, but for prompts, which are the model's.
        """
        if not isinstance(model, Blip2Config):
            return self
        changed: dict[str, TaskConfig] = {}
        if isinstance(own := self.retrieval, RetrievalConfig):
            changed["retrieval"] = Blip2RetrievalConfig(text=own.text, rerank=own.rerank, chunk=own.chunk)
        if isinstance(own := self.captioning, CaptioningConfig):
            changed["captioning"] = Blip2Stage2Config(text=own.text, decoding=own.decoding)
        if isinstance(self.vqa, VQAConfig):
            changed["vqa"] = Blip2VQAConfig()
        return self.model_copy(update=changed)

    def output_settings(self) -> dict[str, Any]:
        """The settings that change predictions; those of the scores alone do not."""
        values = super().output_settings()
        for name, cfg in self.task_configs.items():
            values[name] = {key: value for key, value in values[name].items() if key not in cfg.SCORING}
        return values


class EvaluationJob(Job[EvaluateConfig]):
    """The evaluation of one model on one split."""

    FORMAT: ClassVar[int] = 3

    type: Literal["evaluation"] = "evaluation"  # pyright: ignore[reportIncompatibleVariableOverride] (it is frozen)

    @property
    def quotas(self) -> dict[str, int]:
        """The number of samples to evaluate by shard."""
        return quotas(self.input, self.config.evaluation.limit)


def run_evaluation_worker(uri: str, name: str) -> None:
    """Works on an evaluation job, with other workers, until all its shards are predicted or set aside."""
    job = EvaluationJob.load(uri)
    with job.models["model"].folder() as folder:
        tasks, size = load_tasks(job.config, folder), image_size(folder)
    predict_all(job, open_store(uri), tasks, size, name)


Tasks = Mapping[str, EvaluableTask[Any, Any]]
"""Tasks by their type."""


def load_tasks(cfg: EvaluateConfig, model: str | Path) -> Tasks:
    """Returns the evaluated tasks by type, with the model of a folder.

    Raises ConfigError if texts or captions are longer than the model's positions.
    """
    sizes = read_model_config(model).model
    tasks: dict[str, EvaluableTask[Any, Any]] = {}
    for name, task_cfg in cfg.task_configs.items():
        task_cfg.check_text_lengths(sizes)
        task = load_task(model, task_cfg)
        assert isinstance(task, EvaluableTask)
        tasks[name] = task
    return tasks


def image_size(model: str | Path) -> int:
    """Returns the height and width of a model's input images in pixels."""
    return read_model_config(model).model.vision.size


def predict_all(
    job: EvaluationJob, home: Store, tasks: Tasks, size: int, name: str, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Predicts shards as worker `name` until none is left; moves the tasks to this process's device.

    `home` is the job's folder, `size` the height and width of the images. Calls `advance` with the size of every batch.
    """
    ledger = open_store(job.ledger or f"{home.uri}/gpu-hours")
    budget = Budget(job.config.max_gpu_hours, ledger, job.account, gpus_held())
    cfg = job.config.evaluation
    wanted = job.quotas
    shards = {shard.name: shard for shard in job.input.shards if shard.name in wanted}
    view = partial(evaluation_view, size=size, max_pixels=job.config.max_pixels)
    tally = Counter[str]()
    began = time.monotonic()

    def run_pass(
        store: Store, task: EvaluableTask[Any, P], predict: Predict[P], before: Sequence[Sequence[P]] = ()
    ) -> None:
        offsets = dict(zip(wanted, accumulate(map(len, before), initial=0), strict=False))
        process = ShardPredictor(
            task,
            predict,
            job.input.store,
            lambda sample: task.whole(sample, view),
            batch=cfg.batch,
            quotas=wanted,
            offsets=offsets,
            advance=advance,
            unexpected=cfg.unexpected,
            revision=job.revision,
        )
        queue = ShardQueue(store, list(wanted), name, job.config.lease)
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
            for store in second:
                by_shard = read_predictions(first, list(wanted), task.prediction)
                all_predictions = list(chain.from_iterable(by_shard))
                if all_predictions:
                    run_pass(store, task, task.rerank(all_predictions), by_shard)
    except ShardError as e:
        log.warning(
            "%s", e
        )  # raised again by the process that requested the evaluation; a new worker could not mend it
    finally:
        budget.record()


def passes(home: Store, kind: str, task: EvaluableTask[Any, Any]) -> list[Store]:
    """Returns the folder of each pass of a task over all samples: one, or two for a task that re-ranks."""
    return [home.join(kind, name) for name in PASSES[: 1 + task.needs_rerank]]


def predictions(job: EvaluationJob, home: Store, kind: str, task: EvaluableTask[Any, P]) -> list[P]:
    """Returns the predictions of a task's last pass for all samples, in the order of the manifest.

    Raises ShardError if a shard is not done or was set aside.
    """
    last = passes(home, kind, task)[-1]
    return list(chain.from_iterable(read_predictions(last, list(job.quotas), task.prediction)))


def sample_counts(
    job: EvaluationJob, home: Store, kind: str, task: EvaluableTask[Any, Any]
) -> tuple[int, Counter[str]]:
    """Returns the number of samples that a task evaluated, and of those that it could not, by reason.

    Raises as `predictions`.
    """
    done, _ = finished(passes(home, kind, task)[0], list(job.quotas))
    rejected = sum((Counter(record["rejected"]) for record in done.values()), Counter[str]())
    return sum(record["samples"] for record in done.values()), rejected


def samples_done(job: EvaluationJob, home: Store, tasks: Tasks) -> int:
    """Returns the number of samples that are done, summed over tasks and passes; includes the rejected ones."""
    wanted = job.quotas
    count = 0
    for kind, task in tasks.items():
        for store in passes(home, kind, task):
            done, _ = shard_records(store, list(wanted))
            count += sum(wanted[name] for name in done)
    return count


def evaluation_view(image: bytes, size: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Returns the view of an encoded image in evaluation, all of it, uint8 `(3, size, size)`. Raises BadSample."""
    return eval_transform(size)(decode(image, max_pixels))
