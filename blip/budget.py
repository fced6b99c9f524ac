"""The GPU hours of a run: their bound, and a ledger by step over all attempts and workers."""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable

import torch

from blip.config import ConfigError
from blip.distributed import is_main, world
from blip.logs import log
from blip.storage import Store, StoreError, open_store
from blip.storage.records import parse_record


class BudgetError(ConfigError):
    """The run has reached its bound of GPU hours; a retry fails again unless the bound is raised."""


class Budget:
    """The GPU hours of one process group of a step, and its entry in the run's ledger.

    Each attempt and each worker writes an object of its own, `STEP/ID.json`, so that they do not overwrite each other.
    If one is killed, only the hours since its last record are lost.
    """

    def __init__(
        self, bound: float | None, ledger: Store, step: str, gpus: int, clock: Callable[[], float] = time.monotonic
    ):
        """`bound` is in GPU hours, None for no bound; `gpus` is the number that the group holds, busy or not."""
        self.bound = bound
        self.ledger = ledger
        self.step = step
        self.gpus = gpus
        self.clock = clock
        self.began = clock()
        self.account = f"{step}/{uuid.uuid4().hex}.json"

    @property
    def own(self) -> float:
        """The GPU hours of this group."""
        return gpu_hours(self.gpus, self.clock() - self.began)

    def record(self) -> None:
        """Writes the GPU hours of this group to the ledger."""
        if self.gpus:
            self.ledger.put(self.account, json.dumps({"gpu_hours": self.own}).encode())

    def total_hours(self) -> float:
        """Records the GPU hours of this group, and returns those of the step over all attempts and workers."""
        self.record()
        return spent(self.ledger).get(self.step, 0.0)

    def check(self) -> None:
        """Records the GPU hours; raises BudgetError, with the hours of each step, if the run has reached its bound.

        An unavailable store is only logged: the next call records and checks the full time.
        """
        try:
            self.record()
            by_step = {} if self.bound is None else spent(self.ledger)
        except StoreError as error:
            log.warning("GPU hours could not be recorded: %s", error)
            return
        if exhausted(self.bound, by_step):
            shares = ", ".join(f"{step} {hours:.2f}" for step, hours in sorted(by_step.items()))
            raise BudgetError(
                f"max_gpu_hours is {self.bound:g} and the run has spent {sum(by_step.values()):.2f} ({shares}): "
                "saved and stopped; raise max_gpu_hours and run again to continue"
            )


def open_budget(bound: float | None, store: str, step: str, gpus: int) -> Budget:
    """Returns the budget of a step in the ledger of its run. Raises BudgetError if the bound is reached already."""
    budget = Budget(bound, ledger(store, step), step, gpus)
    budget.check()
    return budget


def ledger(store: str, step: str) -> Store:
    """Returns the ledger of a run, which `BLIP_GROUP` names; without it each step has its own."""
    return open_store(store).join("gpu-hours", os.environ.get("BLIP_GROUP") or step)


def gpus_held() -> int:
    """Returns the number of GPUs of this process group, one per process, on rank 0; 0 on other ranks."""
    return world() if is_main() and torch.cuda.is_available() else 0


def gpu_hours(gpus: int, seconds: float) -> float:
    """Returns the GPU hours of `gpus` held for `seconds`."""
    return gpus * seconds / 3600


def exhausted(bound: float | None, by_step: dict[str, float]) -> bool:
    """Returns whether the hours of all steps have reached the bound."""
    return bound is not None and sum(by_step.values()) >= bound


def spent(ledger: Store) -> dict[str, float]:
    """Returns the GPU hours by step, over all attempts and workers."""
    hours: Counter[str] = Counter()
    for key in ledger.list():
        hours[key.rpartition("/")[0]] += parse_record(ledger.get(key), f"{ledger.uri}/{key}")["gpu_hours"]
    return dict(hours)
