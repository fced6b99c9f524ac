"""Judging: predict every sample exactly once, gather, score once."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from blip.batch import Example
from blip.config import Config
from blip.data.manifest import Manifest
from blip.data.sample import Sample
from blip.data.shards import read_shard
from blip.distributed import gather_objects, rank, world
from blip.storage import open_store
from blip.tasks.task import Task


class EvaluationConfig(Config):
    batch: int = 64
    """Images predicted together."""
    limit: int | None = None
    """Judge the first samples only."""


def samples(manifest: Manifest) -> Iterator[Sample]:
    """Every sample of a manifest, shard by shard."""
    store = open_store(manifest.root)
    for shard in manifest.shards:
        yield from read_shard(store, shard)


@torch.no_grad()
def predict(
    task: Task, manifest: Manifest, prepare: Callable[[Sample], Example], cfg: EvaluationConfig, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The task's predictions for all samples, gathered over ranks in the order of the manifest; `advance` hears of every batch."""
    task.eval()
    device = next(task.parameters()).device
    mine = islice(samples(manifest), rank(), cfg.limit, world())
    predictions = []
    while chunk := list(islice(mine, cfg.batch)):
        batch = task.collate([prepare(s) for s in chunk]).to(device)
        predictions += task.predict(batch)
        advance(len(chunk))
    ranks = gather_objects(predictions)
    longest = max(map(len, ranks))
    return [part[i] for i in range(longest) for part in ranks if i < len(part)]
