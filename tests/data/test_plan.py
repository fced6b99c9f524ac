"""The order of samples: each once an epoch, a few shards at a time, independent of processes."""

import numpy as np
import pytest

from blip.config import ConfigError
from blip.data.plan import Plan

MANY = [20 + i % 7 for i in range(200)]
FEW = [300, 5, 0, 71]


def epoch_of(plan: Plan, epoch: int = 0) -> np.ndarray:
    return np.concatenate([plan.rows(epoch * plan.steps + t, 0, plan.batch) for t in range(plan.steps)])


@pytest.mark.parametrize(
    ("counts", "batch", "streams"), [(MANY, 64, 16), (MANY, 60, 16), (FEW, 64, 16), ([1], 1, 64), ([8], 8, 64)]
)
def test_an_epoch_has_every_sample_once_but_for_the_tail(counts: list[int], batch: int, streams: int):
    plan = Plan(counts, 1, batch, streams, window=4)
    tails = set()
    for epoch in range(3):
        seen = {tuple(row) for row in epoch_of(plan, epoch).tolist()}
        assert len(seen) == plan.steps * batch > sum(counts) - batch
        every = {(shard, row) for shard, size in enumerate(counts) for row in range(size)}
        assert seen <= every
        tails.add(frozenset(every - seen))
    assert len(tails) == 3 or tails == {frozenset()}


def test_parts_of_a_batch_are_its_rows():
    plan = Plan(MANY, 1, 64, 16, window=4)
    whole = plan.rows(37, 0, 64)
    for parts in (2, 4, 64):
        size = 64 // parts
        rows = [Plan(MANY, 1, 64, 16, window=4).rows(37, i * size, (i + 1) * size) for i in range(parts)]
        assert np.array_equal(np.concatenate(rows), whole)


def test_any_step_is_found_without_the_ones_before():
    walked = epoch_of(Plan(MANY, 1, 64, 16, window=4), 2)
    plan = Plan(MANY, 1, 64, 16, window=4)
    for step in (40, 3, plan.steps - 1):
        assert np.array_equal(plan.rows(2 * plan.steps + step, 0, 64), walked[step * 64 : (step + 1) * 64])


def test_the_order_depends_on_seed_and_epoch():
    plan = Plan(MANY, 1, 64, 16, window=4)
    assert not np.array_equal(epoch_of(plan, 0), epoch_of(plan, 1))
    assert not np.array_equal(epoch_of(plan), epoch_of(Plan(MANY, 2, 64, 16, window=4)))


def test_few_shards_are_open_at_a_time():
    plan = Plan(MANY, 1, 64, 16, window=2)
    for begin, end, most in ((0, 64, 16 * 4), (16, 32, 4 * 4)):
        for step in range(plan.steps):
            active = plan.shards(step, begin, end)
            assert set(plan.rows(step, begin, end)[:, 0].tolist()) <= active
            assert len(active) <= most
    assert Plan(FEW, 1, 64, 16, window=2).shards(0, 0, 64) >= {0, 1, 3}


def test_streams_change_their_windows_at_different_times():
    plan = Plan([10] * 1000, 1, 64, 16, window=4)
    arrivals = [len(plan.shards(t + 1, 0, 64) - plan.shards(t, 0, 64)) for t in range(plan.steps - 1)]
    assert max(arrivals) <= 10


def test_samples_are_mixed():
    plan = Plan([100], 1, 10, 64, window=4)
    assert np.abs(np.diff(epoch_of(plan)[:, 1])).mean() > 20
    plan = Plan([50] * 100, 1, 32, 8, window=4)
    assert np.mean([len(set(plan.rows(t, 0, 32)[:, 0].tolist())) for t in range(plan.steps)]) > 16


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"loader\.batch is 65, but the data has 64 samples"):
        Plan([30, 34], 1, 65, 16, window=4)
