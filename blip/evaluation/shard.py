"""Predictions for one shard of a data set: any number of workers predict shards, then one process scores all samples."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic

import torch
from pydantic import Field

from blip.batch import Example
from blip.config import Config
from blip.data.manifest import Manifest, Shard
from blip.data.sample import BadSample, Rejected, Sample, one_sample
from blip.data.shards import ShardFile, check_unexpected, good_samples
from blip.storage import Store
from blip.tasks.task import EvaluableTask, P, Predict
from blip.workers.queue import finished
from blip.workers.worker import Output


class EvaluationConfig(Config):
    batch: int = Field(default=64, ge=1)
    """Images predicted together."""
    limit: int | None = Field(default=None, ge=1)
    """Evaluate the first samples only."""
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """The share of a shard's samples over which the code may fail in ways that it does not know, before the evaluation fails. Each is left
    out, and named in the log and the commit record. Three may fail in any case, but with 0 none."""


def quotas(manifest: Manifest, limit: int | None) -> dict[str, int]:
    """Returns how many samples of each shard are evaluated, by its name; shards beyond the limit are not in it."""
    rest, found = manifest.samples if limit is None else limit, {}
    for shard in manifest.shards:
        if rest > 0:
            found[shard.name] = min(rest, shard.samples)
        rest -= shard.samples
    return found


@dataclass
class ShardPredictor(Generic[P]):
    """Runs `predict` over one shard and writes the predictions; equal shards get equal files, whoever predicts them.

    Samples that cannot be evaluated are left out and counted by reason, as in training.
    """

    task: EvaluableTask[Any, P]
    predict: Predict[P]
    source: Store
    prepare: Callable[[Sample], Example]
    batch: int
    quotas: Mapping[str, int]
    offsets: Mapping[str, int]
    """The position of a shard's first sample in the data set."""
    advance: Callable[[int], None]
    """Called with the size of every batch that is done."""
    unexpected: float = 0.0
    """The share of a shard's samples that may fail in ways that the code does not know."""

    @torch.no_grad()
    def __call__(self, shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        torch.manual_seed(int(shard.sha256[:8], 16))  # what a task draws depends on the shard, not on who does it or what came before
        device = next(self.task.parameters()).device
        rejected = Rejected()
        predictions: list[P] = []
        with ShardFile(self.source, shard, path, rejected, verified=True) as opened:
            mine = self.examples(islice(good_samples(opened, rejected), self.quotas[shard.name]), rejected)
            while chunk := list(islice(mine, self.batch)):
                first = self.offsets.get(shard.name, 0) + len(predictions)
                batch = self.task.collate(chunk).to(device)
                predictions += self.predict(batch, range(first, first + len(chunk)))
                tally["images"] += len(chunk)
                self.advance(len(chunk))
            check_unexpected(rejected, opened, self.unexpected, "evaluation.unexpected")
        file = folder / "predictions.pt"
        torch.save([vars(prediction) for prediction in predictions], file)
        return Output(file, {"samples": len(predictions), "rejected": dict(rejected), "unexpected": rejected.details})

    def examples(self, samples: Iterable[Sample], rejected: Rejected) -> Iterator[Example]:
        for sample in samples:
            try:
                with one_sample(sample.id):
                    example = self.prepare(sample)
            except BadSample as e:
                rejected.add(e)
            else:
                yield example


def gather(at: Store, shards: Sequence[str], kind: type[P]) -> list[list[P]]:
    """Returns the predictions, of class `kind`, of each shard in the order given.

    Raises ShardError where a shard is not done, or was set aside.
    """
    done, _ = finished(at, shards)
    files = [torch.load(io.BytesIO(at.get(record["name"])), weights_only=True) for record in done.values()]
    return [[kind(**values) for values in file] for file in files]
