"""The job of an evaluation and what its workers do: they predict each shard and, where a task compares all, look at it again."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from blip.batch import Example
from blip.budget import Budget, gpus_held
from blip.config import Config, validate
from blip.data.images import decode
from blip.data.manifest import Manifest
from blip.data.sample import BadSample, Sample
from blip.data.shards import ShardError
from blip.data.transforms import eval_transform
from blip.digest import value_digest
from blip.distributed import device
from blip.evaluation.shard import EvaluationConfig, Judge, gather, quotas
from blip.logs import log
from blip.storage import Store, open_store
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.model_folder import load_task, read_model_config
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.task import Look, Task
from blip.workers.model import ModelSource
from blip.workers.queue import LeaseConfig, ShardQueue, dump, finished, records
from blip.workers.worker import Worker


class EvaluateConfig(Config):
    split: str = "test"
    """The manifest to judge by."""
    retrieval: RetrievalConfig | None = RetrievalConfig()
    """How images and texts are found; none leaves it out."""
    captioning: CaptioningConfig | None = CaptioningConfig()
    """How captions are written; none leaves it out."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    workers: int = Field(default=0, ge=0)
    """Processes on this machine that pull shards; 0 for one a GPU."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    report: float = Field(default=2.0, gt=0)
    """Seconds between two words of a worker about its progress."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; then no further shard is begun. None sets no bound."""

    @model_validator(mode="after")
    def something_is_judged(self) -> Self:
        if self.retrieval is None and self.captioning is None:
            raise ValueError("retrieval and captioning are both none: leave one of them in")
        return self


OPERATION = ("workers", "lease", "report", "max_gpu_hours")
"""Settings that change how the work is done but not what comes out."""


class Job(Config):
    type: Literal["evaluation"] = "evaluation"
    config: EvaluateConfig
    input: Manifest
    model: ModelSource
    revision: str = ""
    """Of the code: another one may judge otherwise."""
    ledger: str = ""
    """The URI where workers keep account of their GPU hours."""

    @property
    def identity(self) -> str:
        """The same for jobs with the same figures."""
        config = self.config.model_dump(mode="json", exclude=set(OPERATION))
        values = {"config": config, "input": self.input.digest, "model": self.model.digest, "revision": self.revision}
        return value_digest(values)[:16]

    @property
    def account(self) -> str:
        """The job's name in the run's account of GPU hours."""
        return f"evaluate-{self.identity}"

    @property
    def quotas(self) -> dict[str, int]:
        """How many samples of each shard are judged."""
        return quotas(self.input, self.config.evaluation.limit)

    def save(self, store: Store) -> None:
        store.put("job.json", dump(self.model_dump(mode="json")))

    @classmethod
    def load(cls, uri: str) -> Self:
        """The job of a folder. Raises MissingKeyError where there is none."""
        return validate(cls, json.loads(open_store(uri).get("job.json")), f"job {uri}")


def work(uri: str, name: str) -> None:
    """Works on the job of a folder in the store, together with others, until all its shards are looked at or set aside."""
    job = Job.load(uri)
    with job.model.folder() as folder:
        tasks, size = load_tasks(job.config, folder), image_size(folder)
    judge(job, open_store(uri), tasks, size, name)


def load_tasks(cfg: EvaluateConfig, model: str | Path) -> dict[str, Task]:
    """What a model folder is judged as, by name."""
    return {task.type: load_task(model, task) for task in (cfg.retrieval, cfg.captioning) if task is not None}


def image_size(model: str | Path) -> int:
    """Height and width of the images that a model folder looks at."""
    return read_model_config(model).model.vision.size


def judge(job: Job, home: Store, tasks: Mapping[str, Task], size: int, name: str, advance: Callable[[int], None] = lambda _: None) -> None:
    """As `work`, with models that are loaded, which go to this process's device, and images of `size`; `advance` hears of every batch."""
    budget = Budget(job.config.max_gpu_hours, open_store(job.ledger or f"{home.uri}/gpu-hours"), job.account, gpus_held())
    wanted, tally = job.quotas, Counter[str]()
    shards = {shard.name: shard for shard in job.input.shards if shard.name in wanted}
    prepare = partial(example, size=size)

    def look_at_all(at: Store, task: Task, look: Look, before: Sequence[Sequence[Any]] = ()) -> None:
        places = dict(zip(wanted, accumulate(map(len, before), initial=0), strict=False))
        process = Judge(task, look, job.input.store, prepare, job.config.evaluation.batch, wanted, places, advance)
        queue = ShardQueue(at, list(wanted), name, job.config.lease)
        Worker(queue, job.input.store, shards, process, job.config.report, budget.check, tally, ahead=False, reports=home).run()

    try:
        for kind, task in tasks.items():
            task.to(device())
            first, *second = rounds(home, kind, task)
            look_at_all(first, task, lambda batch, _, task=task: task.predict(batch))
            for at in second:
                found = gather(first, list(wanted))
                if everything := list(chain.from_iterable(found)):
                    look_at_all(at, task, task.compare(everything), found)
    except ShardError as e:
        log.warning("%s", e)  # whoever asked for the evaluation will find that out; another worker could do no more
    finally:
        budget.record()


def rounds(home: Store, kind: str, task: Task) -> list[Store]:
    """Where the looks of a task at all samples are kept, the first, and where it takes one the second."""
    return [home.join(kind, look) for look in ("first", "second")[: 1 + task.looks_twice]]


def predictions(job: Job, home: Store, kind: str, task: Task) -> list[dict[str, Any]]:
    """All that was found of each sample, in the order of the manifest. Raises ShardError where a shard is not done, or was set aside."""
    looks = [chain.from_iterable(gather(at, list(job.quotas))) for at in rounds(home, kind, task)]
    return [dict(chain.from_iterable(found.items() for found in each)) for each in zip(*looks, strict=True)]


def counted(job: Job, home: Store, tasks: Mapping[str, Task]) -> tuple[int, dict[str, int]]:
    """How many samples were judged, and how many were not, by reason. Raises as `predictions`."""
    kind, task = next(iter(tasks.items()))
    done, _ = finished(rounds(home, kind, task)[0], list(job.quotas))
    left_out = sum((Counter(record["rejected"]) for record in done.values()), Counter())
    return sum(record["samples"] for record in done.values()), dict(left_out)


def behind(job: Job, home: Store, tasks: Mapping[str, Task]) -> int:
    """How many looks at a sample are done."""
    wanted = job.quotas  # what was left out counts as asked for: a tar may hold more that is no sample than its manifest counts
    done = (records(at, list(wanted))[0] for kind, task in tasks.items() for at in rounds(home, kind, task))
    return sum(wanted[name] for part in done for name in part)


def example(sample: Sample, size: int) -> Example:
    """A sample to be judged by: its whole image and all its texts. Raises BadSample."""
    texts = [text for text in sample.texts if text.strip()]
    if not texts:
        raise BadSample("empty text")
    return Example(sample.key, eval_transform(size)(decode(sample.images[0])), texts, sample.meta)
