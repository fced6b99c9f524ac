"""Micro-batch reader: opens, prepares and collates the samples of one micro-batch; is pickled to loader workers."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from blip.shards.cache import ShardCache
from blip.shards.sample import BadSample, Sample, UnexpectedError, one_sample
from blip.shards.verification import ShardError

Prepared = TypeVar("Prepared")
Collated = TypeVar("Collated")
Prepare = Callable[[Sample, np.random.Generator], Prepared]
Collate = Callable[[list[Prepared]], Collated]
ShardRow = tuple[int, int]
"""Shard number and row."""


class Rejection(NamedTuple):
    """Why a sample is left out; `detail` describes an unexpected error, and is empty otherwise."""

    reason: str
    detail: str


class MicroBatchReader(Generic[Prepared, Collated]):
    """Prepares a micro-batch from its epoch and rows; is pickled to workers."""

    def __init__(
        self,
        cache: ShardCache,
        prepare: Prepare[Prepared],
        collate: Collate[Prepared, Collated],
        seed: int,
        firsts: Sequence[int],
    ):
        """`firsts`: for each of the cache's shards the number of the first one that is the same."""
        self.cache = cache
        self.firsts = firsts
        self.prepare = prepare
        self.collate = collate
        self.seed = seed

    def __getitem__(self, task: tuple[int, np.ndarray]) -> tuple[Collated, dict[ShardRow, Rejection]]:
        epoch, rows = task
        bad: dict[ShardRow, Rejection] = {}
        prepared = [self.good(epoch, shard, row, bad) for shard, row in rows.tolist()]
        return self.collate(prepared), bad

    def good(self, epoch: int, number: int, row: int, bad: dict[ShardRow, Rejection]) -> Prepared:
        """Returns the sample of a row or, if it is bad, the next good one of its shard, independent of processes and
        earlier samples."""
        shard = self.cache[number]
        first = self.firsts[number]
        copy = f"#{number - first}" if number > first else ""
        for place in (*range(row, len(shard)), *range(row)):
            try:
                sample = shard[place]
                with one_sample(sample.id):
                    return self.prepare(sample, sample_rng(self.seed, epoch, sample.key + copy))
            except BadSample as e:
                bad[first, place] = Rejection(str(e), e.detail if isinstance(e, UnexpectedError) else "")
        store, entry = self.cache.shards[number]
        found = {rejection.reason for (bad_shard, _), rejection in bad.items() if bad_shard == first}
        reasons = ", ".join(sorted(found))
        raise ShardError(
            f"shard {store.uri}/{entry.name} with sha256 {entry.sha256} has no sample that can be used: {reasons}"
        )


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Returns the random generator of a sample in an epoch."""
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=16).digest())
    )
