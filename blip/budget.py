"""What a run may cost: GPU hours by step, over all attempts and workers, and the bound at which it stops."""

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


class BudgetError(ConfigError):
    """The run has spent what it may; trying again cannot help, a higher bound can."""


class Budget:
    """What one process group of a step has spent, and its account in the run's ledger.

    Each attempt and each worker writes an object of its own, `STEP/ID.json`, so that none overwrites another's and none is lost when one is
    killed: at most what was spent since it last recorded.
    """

    def __init__(self, bound: float | None, ledger: Store, step: str, gpus: int, clock: Callable[[], float] = time.monotonic):
        """`bound` in GPU hours, None for none; `gpus` are those that the group holds, busy or not, and without any it costs nothing."""
        self.bound, self.ledger, self.step, self.gpus, self.clock = bound, ledger, step, gpus, clock
        self.began, self.account = clock(), f"{step}/{uuid.uuid4().hex}.json"

    @property
    def own(self) -> float:
        """GPU hours of this group."""
        return gpu_hours(self.gpus, self.clock() - self.began)

    def record(self) -> None:
        """Writes what this group has spent."""
        if self.gpus:
            self.ledger.put(self.account, json.dumps({"gpu_hours": self.own}).encode())

    @property
    def hours(self) -> float:
        """GPU hours of the step, over all attempts and workers."""
        self.record()
        return spent(self.ledger).get(self.step, 0.0)

    def check(self) -> None:
        """Records; raises BudgetError, which says what each step has spent, where the run has spent what it may.

        A store that does not answer for once is no reason to stop work: the next time counts that in.
        """
        try:
            self.record()
            by_step = {} if self.bound is None else spent(self.ledger)
        except StoreError as error:
            log.warning("GPU hours are not on record this time: %s", error)
            return
        if exhausted(self.bound, by_step):
            shares = ", ".join(f"{step} {hours:.2f}" for step, hours in sorted(by_step.items()))
            raise BudgetError(
                f"max_gpu_hours is {self.bound:g} and the run has spent {sum(by_step.values()):.2f} ({shares}): "
                "it stopped after saving; set a higher bound and run again to go on"
            )


def open_budget(bound: float | None, store: str, step: str, gpus: int) -> Budget:
    """The budget of a step about to begin, in the ledger of its run. Raises BudgetError where nothing is left to spend."""
    budget = Budget(bound, ledger(store, step), step, gpus)
    budget.check()
    return budget


def ledger(store: str, step: str) -> Store:
    """Where the steps of one run keep account of what they spend; `BLIP_GROUP` names the run, without it a step is one by itself."""
    return open_store(store).join("gpu-hours", os.environ.get("BLIP_GROUP") or step)


def gpus_held() -> int:
    """GPUs of this process group, one a process; the first process answers for all."""
    return world() if is_main() and torch.cuda.is_available() else 0


def gpu_hours(gpus: int, seconds: float) -> float:
    """GPU hours of so many GPUs held for so long."""
    return gpus * seconds / 3600


def exhausted(bound: float | None, by_step: dict[str, float]) -> bool:
    """Whether a run has spent what it may."""
    return bound is not None and sum(by_step.values()) >= bound


def spent(ledger: Store) -> dict[str, float]:
    """GPU hours by step, over all attempts and workers."""
    hours: Counter[str] = Counter()
    for key in ledger.list():
        hours[key.rpartition("/")[0]] += json.loads(ledger.get(key))["gpu_hours"]
    return dict(hours)
