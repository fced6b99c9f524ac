"""Questions about held-out images that a second stage of BLIP-2 answers while it trains (BLIP-2, figure 5)."""

from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from pydantic import Field

from blip.batch import Batch, Example
from blip.config import Config, ConfigError
from blip.data.images import decode
from blip.data.transforms import eval_transform
from blip.distributed import all_gather_objects, device, is_main, rank, world
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import BadSample, one_sample
from blip.tasks.blip2_stage2 import Blip2Stage2
from blip.tasks.blip2_vqa import Blip2VQA, Blip2VQAConfig
from blip.tasks.task import Task
from blip.training.engine import StepReport
from blip.training.loop import Hook, every
from blip.training.meter import Track
from blip.training.record import SCORE

BATCH = 50
"""Images whose questions are answered at once."""


class AnswersConfig(Config):
    every: int = Field(ge=1, le=1_000_000_000)
    """Answer after every so many steps, and after the last one."""
    split: str = "test"
    """Name of the data folder's manifest with the questions; nothing is learnt from it."""
    images: int = Field(default=200, ge=1, le=1_000_000)
    """Most images; the first ones of the split."""
    task: Blip2VQAConfig = Blip2VQAConfig()
    """Prompt and decoding."""


class Answers:
    """A hook that records which share of questions the model answers right, in percent, without learning from them.

    The processes share the images. Raises ConfigError if the images have no questions.
    """

    def __init__(self, cfg: AnswersConfig, task: Blip2Stage2, manifest: Manifest, track: Track):
        self.task, self.track = task, track
        self.asked = cfg.task.fitted(task.model).build_task(task.model, task.tokenizer)
        self.batches = questions(self.asked, manifest, cfg.images)
        if not any(batch.extra["asked"].questions for batch in self.batches):
            raise ConfigError(
                f"answers.split is {cfg.split}, but none of its first {cfg.images} images has questions in its json: "
                'name a split with {"questions": [{"question": "...", "answers": ["..."]}]}, or set answers=null'
            )

    def __call__(self, report: StepReport) -> None:
        if report.stop:  # the process must end soon
            return
        self.asked.eval()
        try:
            with torch.random.fork_rng():  # training draws the same numbers with and without
                own = [self.asked.predict(batch.to(device())) for batch in self.batches[rank() :: world()]]
        finally:
            self.task.train()
        found = [prediction for part in all_gather_objects(own) for batch in part for prediction in batch]
        if is_main():
            self.track(report.step, {f"{SCORE}accuracy": dict(self.asked.score(found))["accuracy"]})


def answering(cfg: AnswersConfig | None, task: Task, data: Path, track: Track) -> list[Hook]:
    """Returns the hook that answers questions about images of a data folder, if the settings ask for it."""
    if cfg is None:
        return []
    assert isinstance(task, Blip2Stage2)  # as the settings of the run were checked
    return [every(cfg.every, Answers(cfg, task, Manifest.load(data / f"{cfg.split}.json"), track))]


def questions(task: Blip2VQA, manifest: Manifest, images: int) -> list[Batch]:
    """Returns the first images of a manifest with their questions in batches; skips images that cannot be decoded."""
    view = eval_transform(task.model.cfg.vision.size)
    found: list[Example] = []
    for sample in islice(samples(manifest), images):
        with suppress(BadSample), one_sample(sample.id):
            found.append(task.whole(sample, lambda image: view(decode(image))))
    return [task.collate(found[start : start + BATCH]) for start in range(0, len(found), BATCH)]
