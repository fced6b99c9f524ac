"""Judging a data set shard by shard: any number of workers predict every sample once, then somebody scores them all."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from blip.batch import Example
from blip.config import Config
from blip.data.manifest import Manifest, Shard
from blip.data.sample import BadSample, Sample
from blip.data.shards import ShardFile, good_samples
from blip.storage import Store
from blip.tasks.task import Look, Task
from blip.workers.queue import finished
from blip.workers.worker import Output


class EvaluationConfig(Config):
    batch: int = Field(default=64, ge=1)
    """Images predicted together."""
    limit: int | None = Field(default=None, ge=1)
    """Judge the first samples only."""


def quotas(manifest: Manifest, limit: int | None) -> dict[str, int]:
    """How many samples of each shard are judged, by its name; shards beyond the limit are not in it."""
    rest, found = manifest.samples if limit is None else limit, {}
    for shard in manifest.shards:
        if rest > 0:
            found[shard.name] = min(rest, shard.samples)
        rest -= shard.samples
    return found


@dataclass
class Judge:
    """One shard under a task's eyes: what `look` finds of each sample is kept in a file, the same for every worker.

    Samples that cannot be judged are left out and counted by reason, as in training.
    """

    task: Task
    look: Look
    source: Store
    prepare: Callable[[Sample], Example]
    batch: int
    quotas: Mapping[str, int]
    places: Mapping[str, int]
    """Where a shard's samples begin among all."""
    advance: Callable[[int], None]
    """Hears of every batch."""

    @torch.no_grad()
    def __call__(self, shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        torch.manual_seed(int(shard.sha256[:8], 16))  # what a task draws depends on the shard, not on who does it or what came before
        device = next(self.task.parameters()).device
        rejected, found = Counter[str](), []
        with ShardFile(self.source, shard, path, rejected, verified=True) as file:
            mine = self.examples(islice(good_samples(file, rejected), self.quotas[shard.name]), rejected)
            while chunk := list(islice(mine, self.batch)):
                first = self.places.get(shard.name, 0) + len(found)
                batch = self.task.collate(chunk).to(device)
                found += self.look(batch, range(first, first + len(chunk)))
                tally["images"] += len(chunk)
                self.advance(len(chunk))
        made = folder / "found.pt"
        torch.save(found, made)
        return Output(made, {}, {"samples": len(found), "rejected": dict(rejected)})

    def examples(self, samples: Iterable[Sample], rejected: Counter[str]) -> Iterator[Example]:
        for sample in samples:
            try:
                yield self.prepare(sample)
            except BadSample as e:
                rejected[str(e)] += 1


def gather(at: Store, shards: Sequence[str]) -> list[list[dict[str, Any]]]:
    """What workers found in each of the shards, in the order given. Raises ShardError where one is not done, or was set aside."""
    done, _ = finished(at, shards)
    return [torch.load(io.BytesIO(at.get(record["name"])), weights_only=True) for record in done.values()]
