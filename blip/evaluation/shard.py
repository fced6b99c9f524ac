"""Predictions for one shard of a data set."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Generic

import torch
from pydantic import Field

from blip.batch import Example
from blip.config import Config
from blip.shards.manifest import Manifest, Shard
from blip.shards.reading import ShardFile, check_unexpected, good_samples
from blip.shards.sample import BadSample, Rejected, Sample, one_sample
from blip.storage import Store
from blip.tasks.task import EvaluableTask, P, Predict
from blip.workers.queue import finished
from blip.workers.worker import Output


class EvaluationConfig(Config):
    batch: int = Field(default=64, ge=1)
    """Images per batch."""
    limit: int | None = Field(default=None, ge=1)
    """Number of samples to evaluate, the first ones; None for all."""
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """The share of a shard's samples that may fail with unexpected errors before the evaluation fails.

    Each such sample is skipped and named in the log and the commit record. Up to three are always accepted, except for
    a share of 0."""


def quotas(manifest: Manifest, limit: int | None) -> dict[str, int]:
    """Returns the number of samples to evaluate by shard, without the shards beyond the limit."""
    remaining = manifest.samples if limit is None else limit
    found: dict[str, int] = {}
    for shard in manifest.shards:
        if remaining > 0:
            found[shard.name] = min(remaining, shard.samples)
        remaining -= shard.samples
    return found


@dataclass
class ShardPredictor(Generic[P]):
    """Runs `predict` over one shard and writes the predictions, deterministically.

    Samples that cannot be evaluated are skipped and counted by reason, as in training.
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
    """Called with the size of every batch after its prediction."""
    unexpected: float = 0.0
    """The share of a shard's samples that may fail with unexpected errors."""
    revision: str = ""
    """The code's revision, recorded in each commit."""

    @torch.no_grad()
    def __call__(self, shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        # random draws depend on the shard alone, not on the worker or on earlier shards
        torch.manual_seed(int(shard.sha256[:8], 16))
        device = next(self.task.parameters()).device
        rejected = Rejected()
        predictions: list[P] = []
        with ShardFile(self.source, shard, path, rejected, verified=True) as source:
            samples = islice(good_samples(source, rejected), self.quotas[shard.name])
            for chunk in self.chunks(self.examples(samples, rejected)):
                first = self.offsets.get(shard.name, 0) + len(predictions)
                batch = self.task.collate(chunk).to(device)
                predictions += self.predict(batch, range(first, first + len(chunk)))
                tally["images"] += len(chunk)
                self.advance(len(chunk))
            check_unexpected(rejected, source, self.unexpected, "evaluation.unexpected")
        file = folder / "predictions.pt"
        torch.save([vars(prediction) for prediction in predictions], file)
        record = {
            "samples": len(predictions),
            "rejected": dict(rejected),
            "unexpected": rejected.details,
            "revision": self.revision,
        }
        return Output(file, record)

    def chunks(self, examples: Iterable[Example]) -> Iterator[list[Example]]:
        """Yields up to `batch` examples at a time, each with as many images: clips may differ in their frames."""
        for _, alike in groupby(examples, key=lambda example: example.image.shape):
            while chunk := list(islice(alike, self.batch)):
                yield chunk

    def examples(self, samples: Iterable[Sample], rejected: Rejected) -> Iterator[Example]:
        for sample in samples:
            try:
                with one_sample(sample.id):
                    example = self.prepare(sample)
            except BadSample as e:
                rejected.add(e)
            else:
                yield example


def read_predictions(store: Store, shards: Sequence[str], kind: type[P]) -> list[list[P]]:
    """Returns the predictions, of class `kind`, of each shard in the order of `shards`.

    Raises ShardError if a shard is not done or was set aside.
    """
    done, _ = finished(store, shards)
    files = [torch.load(io.BytesIO(store.get(record["name"])), weights_only=True) for record in done.values()]
    return [[kind(**values) for values in file] for file in files]
