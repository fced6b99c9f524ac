"""What a run may cost: GPU hours by step, over all attempts and workers, and the bound at which it stops."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable

from pydantic import Field

from blip.config import Config, ConfigError
from blip.distributed import gather_objects, is_main
from blip.storage import Store
from blip.training.engine import Report
from blip.training.loop import Hook


class BudgetConfig(Config):
    max_gpu_hours: float | None = Field(None, gt=0)
    """GPU hours that all steps of a run may take together, failed attempts among them; none sets no bound."""


class BudgetError(ConfigError):
    """The run has spent what it may; trying again cannot help, a higher bound can."""


class Budget:
    """What one process group of a step has spent, and its account in the run's ledger.

    Each attempt and each worker writes an object of its own, `STEP/ID.json`, so that none overwrites another's and none is lost when one is
    killed: at most what was spent since it last recorded.
    """

    def __init__(self, cfg: BudgetConfig, ledger: Store, step: str, gpus: int, clock: Callable[[], float] = time.monotonic):
        """`gpus` are those that the group holds, busy or not; 0 is a group without, which costs nothing."""
        self.cfg, self.ledger, self.step, self.gpus, self.clock = cfg, ledger, step, gpus, clock
        self.began, self.account = clock(), f"{step}/{uuid.uuid4().hex}.json"

    @property
    def own(self) -> float:
        """GPU hours of this group."""
        return gpu_hours(self.gpus, self.clock() - self.began)

    def record(self) -> dict[str, float]:
        """Writes what this group has spent, and reads what all have, by step."""
        if self.gpus:
            self.ledger.put(self.account, json.dumps({"gpu_hours": self.own}).encode())
        return spent(self.ledger)

    def check(self) -> None:
        """Records; raises BudgetError, which says what each step has spent, where the run has spent what it may."""
        by_step = self.record()
        if exhausted(self.cfg.max_gpu_hours, by_step):
            shares = ", ".join(f"{step} {hours:.2f}" for step, hours in sorted(by_step.items()))
            raise BudgetError(
                f"budget.max_gpu_hours is {self.cfg.max_gpu_hours:g} and the run has spent {sum(by_step.values()):.2f} ({shares}): "
                "it stopped after saving; set a higher bound and run again to go on"
            )


def stop_when_spent(budget: Budget, save: Callable[[], None]) -> Hook:
    """A hook that saves and raises BudgetError, on every process after the same step, once the run has spent what it may."""

    def look(_: Report) -> None:
        reason = ""
        if is_main():
            try:
                budget.check()
            except BudgetError as error:
                reason = str(error)
        if reason := gather_objects(reason)[0]:
            save()
            raise BudgetError(reason)

    return look


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
