"""The progress of a job: what its workers have reported, each and in total."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from blip.logs import log
from blip.results import Speed
from blip.storage import Store
from blip.storage.records import parse_record
from blip.workers.queue import READERS

MAX_SHOWN = 4
"""Workers shown beside the progress bar at most."""
STAGES = ("input", "encode", "decode", "filter")
"""The stages of CapFilt whose time the workers report."""
CHECK_SECONDS = 0.2
"""Seconds between two checks whether worker processes are still running."""

Tally = dict[str, float]
"""The counts of one worker or of all, and the `seconds` over which they were counted."""
Workers = Callable[[str], AbstractContextManager[Callable[[], bool]]]
"""Starts workers for a job's URI and yields a function that returns whether any is running; stops them at the end."""


def wait_for_workers(tallies: "Tallies", workers: Workers, every: float, on_update: Callable[[], None]) -> None:
    """Runs workers until none is left; reads tallies and calls `on_update` each `every` seconds and at the end."""
    with workers(tallies.store.uri) as is_running:
        updated, running = 0.0, True
        while running:
            running = is_running()
            if running and time.monotonic() - updated < every:
                time.sleep(CHECK_SECONDS)
                continue
            updated = time.monotonic()
            tallies.read()
            on_update()


@dataclass
class Tallies:
    """What the workers of a job have counted since the creation of this object.

    An older report that never changes belongs to a worker that is gone. One that changes belongs to a worker that an
    earlier attempt of this step started; its counts from before are subtracted.
    """

    store: Store
    """The store of the job."""
    shards: int
    """Shards that were done before."""
    before: dict[str, Tally]
    """The reports from before, by worker."""
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    workers: dict[str, Tally] = field(default_factory=dict)

    @classmethod
    def since_now(cls, store: Store, shards: int) -> Self:
        return cls(store, shards, read_reports(store))

    def read(self) -> None:
        """Updates the tallies from the workers' reports."""
        self.seconds = time.monotonic() - self.began
        reports = read_reports(self.store)
        changed = {name: tally for name, tally in reports.items() if tally != self.before.get(name)}
        self.workers = {name: difference(tally, self.before.get(name, {})) for name, tally in changed.items()}

    def sum(self, name: str) -> float:
        return sum(tally.get(name, 0) for tally in self.workers.values())

    def bar_figures(self) -> dict[str, float]:
        """Returns the shards done, the mean p(match) by source, and the images per second of the first workers."""
        figures = {"shards": self.shards + self.sum("shards"), **self.mean_matches()}
        if len(self.workers) > 1:
            shown = list(self.workers.items())[:MAX_SHOWN]
            figures |= {name: images_per_second(tally) for name, tally in shown}
        return figures

    def mean_matches(self) -> dict[str, float]:
        """Returns the mean p(match) of the texts scored so far, by source."""
        scored = {source: self.sum(f"{source}.scored") for source in ("web", "synthetic")}
        return {f"match_{source}": self.sum(f"{source}.match") / count for source, count in scored.items() if count}

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of all workers together and of each, for tracking."""
        metrics = {
            "shards": self.shards + self.sum("shards"),
            "images_per_second": self.sum("images") / self.seconds,
            **self.mean_matches(),
        }
        for name, tally in self.workers.items():
            metrics[f"{name}/images_per_second"] = images_per_second(tally)
            metrics[f"{name}/shards"] = tally.get("shards", 0)
        return {f"capfilt/{name}": value for name, value in metrics.items()}

    def speed(self) -> Speed:
        """Logs and returns the images per second, and the share of each stage in the workers' time."""
        for name, tally in self.workers.items():
            shards, images = tally.get("shards", 0), tally.get("images", 0)
            log.info("%s: %d shards, %d images, %.3g images/s", name, shards, images, images_per_second(tally))
        nanoseconds = {stage: self.sum(f"ns.{stage}") for stage in STAGES}
        total = sum(nanoseconds.values()) or 1
        return Speed(
            images_per_second=self.sum("images") / self.seconds,
            workers={name: images_per_second(tally) for name, tally in self.workers.items()},
            shares={stage: time / total for stage, time in nanoseconds.items()},
        )


def read_reports(store: Store) -> dict[str, Tally]:
    """Returns the latest report of each worker of a job."""
    keys = store.list("worker/")
    with ThreadPoolExecutor(READERS) as pool:
        reports = zip(keys, pool.map(store.get, keys), strict=True)
        return {
            key.removeprefix("worker/").removesuffix(".json"): parse_record(data, f"{store.uri}/{key}")
            for key, data in reports
        }


def difference(tally: Tally, before: Tally) -> Tally:
    """Returns what was counted after an earlier report."""
    return {name: value - before.get(name, 0) for name, value in tally.items()}


def images_per_second(tally: Tally) -> float:
    return tally.get("images", 0) / max(tally["seconds"], 1e-9)
