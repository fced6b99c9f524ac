"""What a person sees of a job while workers are at it, each and all together."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from blip.logs import log
from blip.storage import Store
from blip.workers.queue import READERS

SHOWN = 4
"""Workers named beside the progress bar at most."""
PARTS = ("input", "encode", "decode", "filter")
LOOK = 0.2
"""Seconds between two looks whether workers are still there."""

Tally = dict[str, float]
"""What a worker, or all of them, have counted so far, and the `seconds` they were at work."""
Workers = Callable[[str], AbstractContextManager[Callable[[], bool]]]
"""Starts workers for a job's URI and gives a function that says whether they are at work; leaving ends them."""


def follow(crew: "Tallies", workers: Workers, every: float, look: Callable[[], None]) -> None:
    """Waits until no worker of a job is at work; looks at what they say of themselves every so many seconds, and once more at the end."""
    with workers(crew.store.uri) as working:
        looked, busy = 0.0, True
        while busy:
            busy = working()
            if busy and time.monotonic() - looked < every:
                time.sleep(LOOK)
                continue
            looked = time.monotonic()
            crew.read()
            look()


@dataclass
class Tallies:
    """What workers say of themselves, those of earlier times left out."""

    store: Store
    """The job's."""
    shards: int
    """Done before they began."""
    old: set[str]
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    workers: dict[str, Tally] = field(default_factory=dict)

    def read(self) -> None:
        keys = [key for key in self.store.list("worker/") if key not in self.old]
        with ThreadPoolExecutor(READERS) as pool:
            tallies = map(json.loads, pool.map(self.store.get, keys))
            self.workers = {key.removeprefix("worker/").removesuffix(".json"): tally for key, tally in zip(keys, tallies, strict=True)}
        self.seconds = time.monotonic() - self.began

    def sum(self, name: str) -> float:
        return sum(tally.get(name, 0) for tally in self.workers.values())

    def beside_the_bar(self) -> dict[str, float]:
        """Shards done, kept shares so far, and the rates of the first workers."""
        rates = {name: rate(tally) for name, tally in list(self.workers.items())[:SHOWN]}
        return {"shards": self.shards + self.sum("shards"), **self.kept(), **(rates if len(rates) > 1 else {})}

    def kept(self) -> dict[str, float]:
        return {f"kept_{source}": self.sum(f"{source}.kept") / n for source in ("web", "synthetic") if (n := self.sum(source))}

    def curves(self) -> dict[str, float]:
        """The same for the record, of all workers and of each."""
        whole = {"shards": self.shards + self.sum("shards"), "images_per_second": self.sum("images") / self.seconds, **self.kept()}
        each = {f"{name}/images_per_second": rate(tally) for name, tally in self.workers.items()}
        each |= {f"{name}/shards": tally.get("shards", 0) for name, tally in self.workers.items()}
        return {f"capfilt/{name}": value for name, value in {**whole, **each}.items()}

    def speed(self) -> dict[str, Any]:
        for name, tally in self.workers.items():
            log.info("%s: %d shards, %d images, %.0f images/s", name, tally.get("shards", 0), tally.get("images", 0), rate(tally))
        spent = {part: self.sum(f"ns.{part}") for part in PARTS}
        return {
            "images_per_second": self.sum("images") / self.seconds,
            "workers": {name: rate(tally) for name, tally in self.workers.items()},
            "shares": {part: time / (sum(spent.values()) or 1) for part, time in spent.items()},
        }


def rate(tally: Tally) -> float:
    """Images a second."""
    return tally.get("images", 0) / max(tally["seconds"], 1e-9)
