"""The bound and the ledger of GPU hours."""

from dataclasses import replace

import pytest

from blip.budget import Budget, BudgetError, exhausted, gpu_hours, spent
from blip.config import ConfigError
from blip.storage import open_store
from blip.training.engine import StepReport
from blip.training.spending import stop_when_spent


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hours_are_those_of_all_gpus_that_are_held():
    assert gpu_hours(8, 1800) == 4
    assert gpu_hours(0, 1800) == 0


def test_no_bound_is_never_reached():
    assert not exhausted(None, {"pretrain": 1e9})
    assert not exhausted(10, {"pretrain": 6, "captioner": 3.9})
    assert exhausted(10, {"pretrain": 6, "captioner": 4})


def test_attempts_and_workers_add_up_by_step(tmp_path):
    ledger, clock = open_store(tmp_path), Clock()
    groups = [
        Budget(None, ledger, step, gpus, clock) for step, gpus in (("pretrain", 8), ("pretrain", 8), ("capfilt", 1))
    ]
    clock.now = 3600
    for group in groups:
        group.check()
        group.check()
    assert spent(ledger) == {"pretrain": 16, "capfilt": 1}


def test_what_a_killed_group_recorded_still_counts_for_the_next(tmp_path):
    ledger, clock = open_store(tmp_path), Clock()
    killed = Budget(10, ledger, "pretrain", 8, clock)
    clock.now = 3600
    killed.check()
    attempt = Budget(10, ledger, "pretrain", 8, clock)
    attempt.check()
    clock.now += 900
    with pytest.raises(BudgetError, match=r"max_gpu_hours is 10 and the run has spent 10.00 \(pretrain 10.00\)"):
        attempt.check()


def test_a_bound_that_is_reached_ends_the_step_for_good():
    assert issubclass(BudgetError, ConfigError)


def test_a_group_without_gpus_costs_nothing(tmp_path):
    ledger, clock = open_store(tmp_path), Clock()
    group = Budget(0.1, ledger, "ingest", 0, clock)
    clock.now = 1e6
    group.check()
    assert spent(ledger) == {}


def test_training_stops_but_not_after_its_last_step(tmp_path):
    clock = Clock()
    look = stop_when_spent(Budget(1, open_store(tmp_path), "pretrain", 8, clock))
    step = StepReport(step=1, last=False, losses={}, learning_rate=0.0, grad_norm=0.0, samples=1, tokens=0, stop=False)
    look(step)
    clock.now = 3600
    look(replace(step, last=True))
    with pytest.raises(BudgetError, match="max_gpu_hours is 1"):
        look(step)
