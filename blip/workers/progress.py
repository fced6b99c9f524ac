"""Progress of a job while its workers run, of each of them and of all together."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from blip.logs import log
from blip.results import Speed
from blip.storage import Store
from blip.workers.queue import READERS

SHOWN = 4
"""Workers named beside the progress bar at most."""
PARTS = ("input", "encode", "decode", "filter")
LOOK = 0.2
"""Seconds between two checks whether workers of this machine still run."""

Tally = dict[str, float]
"""What a worker, or all of them, have counted so far, and the `seconds` they were at work."""
Workers = Callable[[str], AbstractContextManager[Callable[[], bool]]]
"""Starts workers for a job's URI and returns a function that says whether they run; leaving the context ends them."""


def follow(tallies: "Tallies", workers: Workers, every: float, look: Callable[[], None]) -> None:
    """Waits until no worker of a job is at work; calls `look` with new tallies every so many seconds, and once more at the end."""
    with workers(tallies.store.uri) as working:
        looked, busy = 0.0, True
        while busy:
            busy = working()
            if busy and time.monotonic() - looked < every:
                time.sleep(LOOK)
                continue
            looked = time.monotonic()
            tallies.read()
            look()


@dataclass
class Tallies:
    """What the workers of a job have reported since a moment.

    A report that was there before and stays as it is belongs to a worker that is gone. One that changes belongs to a worker that an
    earlier attempt of this step started and that goes on; what it had counted before is left out.
    """

    store: Store
    """The job's."""
    shards: int
    """Done before."""
    before: dict[str, Tally]
    """The reports that were there, by worker."""
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    workers: dict[str, Tally] = field(default_factory=dict)

    @classmethod
    def since_now(cls, store: Store, shards: int) -> Self:
        return cls(store, shards, reports(store))

    def read(self) -> None:
        self.seconds = time.monotonic() - self.began
        now = reports(self.store)
        self.workers = {name: since(tally, self.before.get(name, {})) for name, tally in now.items() if tally != self.before.get(name)}

    def sum(self, name: str) -> float:
        return sum(tally.get(name, 0) for tally in self.workers.values())

    def beside_the_bar(self) -> dict[str, float]:
        """Shards done, the mean p(match) of texts so far, and the rates of the first workers."""
        rates = {name: rate(tally) for name, tally in list(self.workers.items())[:SHOWN]}
        return {"shards": self.shards + self.sum("shards"), **self.matches(), **(rates if len(rates) > 1 else {})}

    def matches(self) -> dict[str, float]:
        """The mean p(match) so far by source: what is kept of them is decided later, over all shards."""
        scored = {source: self.sum(f"{source}.scored") for source in ("web", "synthetic")}
        return {f"match_{source}": self.sum(f"{source}.match") / count for source, count in scored.items() if count}

    def curves(self) -> dict[str, float]:
        """The same for the record, of all workers and of each."""
        whole = {"shards": self.shards + self.sum("shards"), "images_per_second": self.sum("images") / self.seconds, **self.matches()}
        each = {f"{name}/images_per_second": rate(tally) for name, tally in self.workers.items()}
        each |= {f"{name}/shards": tally.get("shards", 0) for name, tally in self.workers.items()}
        return {f"capfilt/{name}": value for name, value in {**whole, **each}.items()}

    def speed(self) -> Speed:
        for name, tally in self.workers.items():
            log.info("%s: %d shards, %d images, %.0f images/s", name, tally.get("shards", 0), tally.get("images", 0), rate(tally))
        spent = {part: self.sum(f"ns.{part}") for part in PARTS}
        return Speed(
            images_per_second=self.sum("images") / self.seconds,
            workers={name: rate(tally) for name, tally in self.workers.items()},
            shares={part: time / (sum(spent.values()) or 1) for part, time in spent.items()},
        )


def reports(store: Store) -> dict[str, Tally]:
    """Returns the newest report of each worker of a job."""
    keys = store.list("worker/")
    with ThreadPoolExecutor(READERS) as pool:
        found = map(json.loads, pool.map(store.get, keys))
        return {key.removeprefix("worker/").removesuffix(".json"): tally for key, tally in zip(keys, found, strict=True)}


def since(tally: Tally, before: Tally) -> Tally:
    """Returns what was counted after an earlier report."""
    return {name: value - before.get(name, 0) for name, value in tally.items()}


def rate(tally: Tally) -> float:
    """Images a second."""
    return tally.get("images", 0) / max(tally["seconds"], 1e-9)
