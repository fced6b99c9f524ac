"""Training batches: the same samples in the same order on any number of processes, from any step on."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Generic, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader

from blip.config import Config, ConfigError
from blip.data.plan import Course, Plan
from blip.data.reader import Collate, Collated, MicroBatchReader, Prepare, Prepared, Rejection, ShardRow
from blip.data.shared_memory import (
    SHM_REMEDY,
    check_shared_memory,
    exit_on_send_error,
    format_megabytes,
    free_bytes,
    size_bytes,
)
from blip.shards.cache import ShardCache, private_folder
from blip.shards.manifest import Manifest, Shard
from blip.shards.sample import too_many_unexpected
from blip.shards.verification import ShardError
from blip.storage import Store, StoreError

FETCH_THREADS = 4


CACHE_VARIABLE = "BLIP_CACHE_GB"
"""The variable with the largest size of copies of shards on a machine, in GB."""


class LoaderConfig(Config):
    batch: int = Field(default=64, ge=1, le=10_000_000)
    """Samples of an optimizer step, over all processes."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples of a forward pass in one process, with gradient accumulation; by default the process's whole part of the
    batch. To resume with equal batches on another number of processes, keep it unchanged."""
    streams: int = Field(default=64, ge=1, le=1_000_000)
    """Parts of the data from which a batch draws concurrently; the order of samples depends on it."""
    window: int = Field(default=4, ge=1, le=1_000_000)
    """Shards that a stream shuffles together; the order of samples depends on it."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes that read and decode beside the training; with 0, the training process does."""
    prefetch: int = Field(default=2, ge=1, le=1024)
    """Micro-batches that a worker prepares in advance."""
    ranged: bool = False
    """Request single samples from the bucket instead of whole shards, for shards larger than the local disk. Digests
    are not verified."""
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """Largest share of samples with unexpected errors before the training fails. Each is left out and logged. Three are
    always tolerated, except with 0."""
    cache: str | None = None
    """The local folder for copies of shards; by default one in the system's temporary folder, shared by the runs of a
    user and closed to others. Users who can write to the folder control the training data."""
    cache_gb: float = Field(default=100.0, gt=0)
    """Largest size of these copies, in GB; the variable BLIP_CACHE_GB lowers it on a machine with a smaller disk."""

    @model_validator(mode="after")
    def micro_batches_fill_a_batch(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"loader.batch is {self.batch}, not divisible by micro-batches of {self.micro_batch}: "
                "make it a multiple of loader.micro_batch"
            )
        return self

    @property
    def cache_bytes(self) -> int:
        """The largest size of copies on this machine. Raises ConfigError if BLIP_CACHE_GB is not a number of GB."""
        given = os.environ.get(CACHE_VARIABLE) or str(self.cache_gb)
        try:
            most = float(given)
        except ValueError:
            most = 0.0
        if not most > 0:
            raise ConfigError(f"{CACHE_VARIABLE} is {given!r}: set it to a number of GB above 0, or unset it")
        return int(min(self.cache_gb, most) * 1e9)


class Loader(Generic[Collated]):
    """Endless micro-batches of one rank over one or several data sets.

    They begin with those of the optimizer step `step`, 0 unless it is set; it counts the steps that are done.

    `prepare` converts a sample to what `collate` makes a batch of; its random generator depends only on seed, epoch and
    the sample's key. The samples of a step depend only on the data, the seed and the config's batch, streams and
    window: the global batch is the concatenation of the ranks' parts, and a rank's part that of its micro-batches.

    A sample for which `prepare` raises BadSample is counted by reason and replaced by the next good one of its shard;
    so is one with an unexpected error, within `cfg.unexpected`. With workers, `prepare` and `collate` run in their
    processes.

    Raises ConfigError if batch, data and processes do not fit, ShardError if a shard is missing or altered.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        prepare: Prepare[Prepared],
        collate: Collate[Prepared, Collated],
        cfg: LoaderConfig,
        rank: int = 0,
        world: int = 1,
        *,
        seed: int = 0,
        repeats: Sequence[int] = (),
        lead: Collection[int] = (),
        lead_epochs: float = 0.0,
    ):
        """`repeats`: how often an epoch takes each sample of a manifest, with other draws each time, or once. `lead`:
        positions of the manifests that a run begins with, for `lead_epochs` passes over them alone."""
        self.cfg = cfg
        self.rank = rank
        self.step = 0
        self.micro_batch, self.accumulation = split_batch(cfg, world)
        for manifest in manifests:
            manifest.check_counts()
        stored: list[tuple[Store, Shard]] = []
        firsts: list[int] = []
        leading: list[int] = []
        for place, (manifest, times) in enumerate(zip(manifests, repeats or [1] * len(manifests), strict=True)):
            numbers = range(len(stored), len(stored) + len(manifest.shards))
            if place in lead:
                leading += numbers
            for _ in range(times):
                stored += [(manifest.store, shard) for shard in manifest.shards]
                firsts += numbers
        counts = [shard.samples for _, shard in stored]
        self.courses = [plan_course(counts, seed, cfg, leading, lead_epochs) for _ in range(2)]
        """For reading and for prefetching: a plan caches the state of one epoch."""
        self.remote = not cfg.ranged and any(store.path(shard.name) is None for store, shard in stored)
        if self.remote:
            check_cache(cfg, [shard.bytes for _, shard in stored], self.courses[0].then, world)
        folder = private_folder() if self.remote and not cfg.cache else Path(cfg.cache or "")
        self.reader = MicroBatchReader(
            ShardCache(stored, folder, cfg.cache_bytes, cfg.ranged), prepare, collate, seed, firsts
        )
        self.bad: dict[ShardRow, Rejection] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, the same for every number of processes."""
        return self.courses[0].then.steps

    @property
    def lead_steps(self) -> int:
        """Optimizer steps before the first epoch over all data."""
        return self.courses[0].lead

    @property
    def samples(self) -> int:
        """Samples of an epoch, including those that it leaves out and repeated ones."""
        return self.courses[0].then.total

    @property
    def rejected(self) -> Counter[str]:
        """Samples that this rank could not use so far, by reason; each is counted once."""
        return Counter(fault.reason for fault in self.bad.values())

    def __iter__(self) -> Iterator[Collated]:
        """Yields micro-batches, `accumulation` a step; `step` increases before the last one of a step is yielded."""
        for done, (batch, bad) in enumerate(self.read(), start=1):
            self.bad.update(bad)
            self.check_unexpected()
            if done % self.accumulation == 0:
                self.step += 1
            yield batch

    def check_unexpected(self) -> None:
        """Raises ShardError if unexpected errors affect more of the samples than the configuration allows."""
        details = [fault.detail for fault in self.bad.values() if fault.detail]
        if too_many_unexpected(len(details), self.samples, self.cfg.unexpected):
            raise ShardError(
                f"{len(details)} of {self.samples} samples failed unexpectedly, more than "
                f"loader.unexpected={self.cfg.unexpected:g} allows; the first: {details[0]}"
            )

    def read(self) -> Iterator[tuple[Collated, dict[ShardRow, Rejection]]]:
        fetchers = ThreadPoolExecutor(FETCH_THREADS)
        tasks = self.tasks(self.step, fetchers)
        try:
            yield from self.in_workers(tasks) if self.cfg.workers else map(self.reader.__getitem__, tasks)
        finally:
            fetchers.shutdown(wait=False, cancel_futures=True)
            self.reader.cache.close()

    def in_workers(
        self, tasks: Iterator[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[Collated, dict[ShardRow, Rejection]]]:
        """Yields the workers' results in the order of the tasks.

        Raises ConfigError before the first if /dev/shm is too small. Raises StoreError if a worker dies: of lack of
        memory, or of /dev/shm if other programs fill it.
        """
        self.check_first_batch()
        batches = DataLoader(
            self.reader,  # pyright: ignore[reportArgumentType]
            sampler=tasks,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            collate_fn=identity,
            num_workers=self.cfg.workers,
            worker_init_fn=init_worker,
            prefetch_factor=self.cfg.prefetch,
            generator=torch.Generator(),  # not the global one, which would be drawn from only if there are workers
        )
        iterator = iter(batches)
        try:
            yield from iterator
        except (RuntimeError, EOFError, ConnectionError) as e:
            message = worker_failure(e)
            if not message:
                raise
            with suppress(
                RuntimeError
            ):  # PyTorch reports the other workers' deaths, too, and prints them if in __del__
                iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
            free = format_megabytes(free_bytes())
            size = format_megabytes(size_bytes())
            raise StoreError(f"{message}; {free} of {size} in /dev/shm were free. If it was full, {SHM_REMEDY}") from e

    def check_first_batch(self) -> None:
        """Prepares the first batch in this process for its size. Raises ConfigError if /dev/shm is too small for all
        concurrent ones."""
        course = self.courses[0]
        epoch = course.epoch(self.step)
        rows = course.rows(self.step, *self.part(0, self.micro_batch))
        batch, _ = self.reader[epoch, rows]
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        check_shared_memory(batch, local * (self.cfg.workers * self.cfg.prefetch + self.accumulation + 1))

    def tasks(self, step: int, fetchers: ThreadPoolExecutor) -> Iterator[tuple[int, np.ndarray]]:
        """Yields epoch and rows of this rank's micro-batches; starts the download of shards that are used soon."""
        course, ahead = self.courses
        share = self.micro_batch * self.accumulation
        early = ahead.then.window // ahead.then.each // 2
        sent: set[int] = set()
        for now in count(step):
            if self.remote:
                soon = ahead.shards(now, *self.part(0, share)) | ahead.shards(now + early, *self.part(0, share))
                for number in soon - sent:
                    fetchers.submit(self.reader.cache.copy, number)
                sent = soon
            for i in range(self.accumulation):
                yield course.epoch(now), course.rows(now, *self.part(i * self.micro_batch, self.micro_batch))

    def part(self, offset: int, size: int) -> tuple[int, int]:
        """Returns the range of this rank's samples in the global batch, from `offset` on."""
        begin = self.rank * self.micro_batch * self.accumulation + offset
        return begin, begin + size


def worker_failure(error: Exception) -> str:
    """Returns the message of an error that means that a worker died; empty for other errors.

    PyTorch reports the death or, if the worker was sending a batch, the connection to it breaks. Errors that a worker
    raised begin with "Caught".
    """
    message = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError):
        return message.rstrip(".") if "DataLoader worker" in str(error) else ""
    if message.startswith("Caught "):
        return ""
    return f"a DataLoader worker ended: {error!r}"


def split_batch(cfg: LoaderConfig, world: int) -> tuple[int, int]:
    """Returns the size and the number of a process's micro-batches in a step. Raises ConfigError if they do not fit."""
    share, rest = divmod(cfg.batch, world)
    if rest:
        raise ConfigError(
            f"loader.batch is {cfg.batch}, not divisible by {world} processes: make it a multiple of {world}"
        )
    size = cfg.micro_batch or share
    if share % size:
        raise ConfigError(
            f"loader.micro_batch is {size}, but each of {world} processes has {share} samples of a batch: "
            "make it a divisor"
        )
    return size, share // size


def plan_course(counts: Sequence[int], seed: int, cfg: LoaderConfig, leading: Sequence[int], epochs: float) -> Course:
    """Returns the order of a run over shards with `counts` samples, which begins with passes over the `leading` ones.

    Raises ConfigError if either has fewer samples than a batch.
    """
    then = Plan(counts, seed, cfg.batch, cfg.streams, cfg.window)
    if not leading or not epochs:
        return Course(then)
    first = Plan([counts[number] for number in leading], seed, cfg.batch, cfg.streams, cfg.window)
    return Course(then, first, leading, round(epochs * first.steps))


def check_cache(cfg: LoaderConfig, sizes: list[int], plan: Plan, world: int) -> None:
    """Raises ConfigError if the shards in concurrent use exceed the cache's size."""
    here = min(1.0, int(os.environ.get("LOCAL_WORLD_SIZE", world)) / world)
    used = sum(sizes) if plan.streams == 1 else min(sum(sizes), max(sizes) * (cfg.window + 1) * plan.streams * here)
    if used > cfg.cache_bytes:
        lowered = f", {CACHE_VARIABLE} {os.environ[CACHE_VARIABLE]}" if os.environ.get(CACHE_VARIABLE) else ""
        raise ConfigError(
            f"loader.cache_gb is {cfg.cache_gb}{lowered}, but {used / 1e9:.1f} GB of shards are in use at a time "
            f"({plan.streams} streams, windows of {cfg.window} shards): raise it, lower loader.streams or "
            "loader.window, or set loader.ranged"
        )


def init_worker(worker: int) -> None:
    """Initialises a loader worker."""
    leave_process_group(worker)
    exit_on_send_error()


def leave_process_group(worker: int) -> None:  # noqa: ARG001
    """Detaches the worker from the process group, so that a launcher's SIGTERM reaches only the trainer, whose current
    step still needs data."""
    os.setpgid(0, 0)


def identity(value: Any) -> Any:
    return value
