import logging

import pytest

from blip.training.alarms import ITM_PRIOR, CaptionsAlike, ItmAtPrior
from blip.training.engine import StepReport


def report(step: int, itm: float = 0.0) -> StepReport:
    return StepReport(step, False, {"itm": itm}, 1e-3, 1.0, 16, 96, False)


def raised(losses: list[float], **options) -> list[tuple[int, dict[str, float]]]:
    """Returns what is tracked for these ITM losses, from step 1 on."""
    tracked = []
    alarm = ItmAtPrior(lambda step, values: tracked.append((step, values)), warmup_steps=2, window=3, **options)
    for step, loss in enumerate(losses, start=1):
        alarm(report(step, loss))
    return tracked


def test_the_prior_is_that_of_one_pair_in_three():
    assert pytest.approx(0.6365, abs=1e-4) == ITM_PRIOR


def test_itm_that_stays_at_its_prior_after_warmup_is_raised_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert raised([0.637] * 9) == [(5, {"alarm/itm_at_prior": 1.0})]
    assert "step 5: alarm: ITM at its prior" in caplog.text


def test_itm_that_falls_raises_nothing():
    assert raised([0.637, 0.637, 0.637, 0.6, 0.55, 0.5]) == []


def test_a_noisy_loss_around_the_prior_is_at_it():
    assert len(raised([0.0, 0.0, 0.60, 0.67, 0.64])) == 1


def test_a_weighted_loss_has_a_weighted_prior():
    assert raised([0.637 * 0.5] * 9) == []
    assert len(raised([0.637 * 0.5] * 9, weight=0.5)) == 1


def test_captions_that_are_all_alike_are_raised(caplog: pytest.LogCaptureFixture):
    tracked = []
    captions = ["a red circle", "a red circle", "a blue square", "a red circle"]
    CaptionsAlike(lambda step, values: tracked.append((step, values)), lambda: captions)(report(7))
    assert tracked == [(7, {"alarm/captions_alike": 1.0})]
    assert "3 of 4 read 'a red circle'" in caplog.text


def test_captions_that_differ_raise_nothing():
    tracked = []
    CaptionsAlike(lambda step, values: tracked.append((step, values)), lambda: ["a", "b", "c", "a"])(report(7))
    assert tracked == []
