"""Alarms: training failures that raise no error."""

import math
from collections import Counter, deque
from collections.abc import Callable

from blip.distributed import is_main
from blip.progress import alarm
from blip.training.engine import StepReport
from blip.training.meter import Track

ITM_PRIOR = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
"""ITM loss, 0.6365, of a model that predicts the prior: one pair in three matches."""


class ItmAtPrior:
    """A hook that raises an alarm if the ITM loss is still at its prior after warmup.

    The mean loss of the last `window` steps must differ from the prior by `tolerance` or more. `weight` is the loss
    weight if the task reports the weighted loss.
    """

    def __init__(
        self, track: Track, warmup_steps: int, window: int = 200, tolerance: float = 0.005, weight: float = 1.0
    ):
        self.track, self.warmup_steps, self.tolerance, self.weight = track, warmup_steps, tolerance, weight
        self.recent: deque[float] = deque(maxlen=window)
        self.raised = False

    def __call__(self, report: StepReport) -> None:
        if report.step <= self.warmup_steps or "itm" not in report.losses or self.raised:
            return
        self.recent.append(report.losses["itm"] / self.weight)
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) == self.recent.maxlen and abs(mean - ITM_PRIOR) < self.tolerance:
            self.raised = True
            raise_alarm(
                self.track,
                report.step,
                "itm_at_prior",
                f"ITM at its prior: the mean loss of the last {len(self.recent)} steps is {mean:.4f}, and "
                f"{ITM_PRIOR:.4f} is what a model "
                "gets that does not look; a held temperature, a longer warmup, a smaller learning rate or, on noisy "
                "pairs, a lead of clean ones have helped",
            )


class CaptionsAlike:
    """A hook that raises an alarm if more than `share` of the captions returned by `write` are identical."""

    def __init__(self, track: Track, write: Callable[[], list[str]], share: float = 0.5):
        self.track, self.write, self.share = track, write, share

    def __call__(self, report: StepReport) -> None:
        if report.stop:  # the process must end soon
            return
        captions = self.write()  # on every rank, since generation may be collective
        caption, count = Counter(captions).most_common(1)[0]
        if len(captions) > 1 and count / len(captions) > self.share:
            raise_alarm(
                self.track,
                report.step,
                "captions_alike",
                f"captions all alike: {count} of {len(captions)} read {caption!r}; the text decoder does not see "
                "the images",
            )


def raise_alarm(track: Track, step: int, name: str, message: str) -> None:
    """Logs an alarm and records it as `alarm/NAME`, on rank 0 only."""
    if is_main():
        alarm(f"step {step}: alarm: {message}")
        track(step, {f"alarm/{name}": 1.0})
