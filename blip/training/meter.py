"""Training metrics: losses, learning rate, throughput, device utilisation, and profiler traces."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from blip.distributed import is_main, rank
from blip.training.engine import Engine, StepReport

Track = Callable[[int, dict[str, float]], None]
"""Records named values of a step, as `blip.tracking` does."""

PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "V100": 125e12,
}
"""Dense bf16 FLOP/s (V100: fp16) by words of the device name, from the vendors' data sheets."""


class Meter:
    """A hook that records losses and throughput, averaged over `every` steps; rank 0 records for all ranks.

    Losses are `train/NAME`, their sum is `train/loss`. `data_wait` is the fraction of time that rank 0 waits for data,
    `mfu` the model FLOPs utilisation of forward and backward passes, `gpu_memory` the peak allocation in GiB.
    """

    def __init__(self, engine: Engine, track: Track, every: int):
        self.engine, self.track, self.every = engine, track, every
        self.peak = peak_flops()
        self.reports: list[StepReport] = []
        engine.count_flops = self.peak is not None

    def __call__(self, report: StepReport) -> None:
        self.reports.append(report)
        if report.step % self.every == 0 or report.last or report.stop:
            if is_main():
                self.track(report.step, self.values())
            self.reports.clear()

    def values(self) -> dict[str, float]:
        """Returns the means over the steps since the last record."""
        steps, last = len(self.reports), self.reports[-1]
        seconds = sum(r.seconds for r in self.reports)
        losses = {name: sum(r.losses[name] for r in self.reports) / steps for name in last.losses}
        values = {f"train/{name}": value for name, value in losses.items()}
        values |= {
            "train/loss": sum(losses.values()),
            "learning_rate": last.learning_rate,
            "grad_norm": sum(r.grad_norm for r in self.reports) / steps,
            "samples_per_second": sum(r.samples for r in self.reports) / seconds,
            "tokens_per_second": sum(r.tokens for r in self.reports) / seconds,
            "data_wait": sum(r.waited for r in self.reports) / seconds,
        }
        if self.peak and self.engine.flops:
            values["mfu"] = self.engine.flops * steps / seconds / self.peak
        if self.engine.device.type == "cuda":
            values["gpu_memory"] = torch.cuda.max_memory_allocated() / 2**30
        return values


class Speed:
    """A hook that counts the samples of all processes, and the seconds of their steps."""

    def __init__(self) -> None:
        self.samples, self.seconds = 0, 0.0

    def __call__(self, report: StepReport) -> None:
        self.samples += report.samples
        self.seconds += report.seconds

    @property
    def samples_per_second(self) -> float:
        """The mean speed; 0 before the first step."""
        return self.samples / self.seconds if self.seconds else 0.0


def peak_flops() -> float | None:
    """Returns the peak bf16 FLOP/s of this process's device, or None if unknown."""
    if not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(device: str) -> float | None:
    """Returns the peak FLOP/s of a device by name, or None if unknown.

    The longest entry whose words all occur in the name wins; words are compared whole, so an L40S does not match L4.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", device))
    known = [name for name in PEAK_FLOPS if words.issuperset(name.split())]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class Profile:
    """A hook that writes a torch trace of `steps` steps per rank, for chrome://tracing or Perfetto.

    The trace of rank 0 is `trace.json` in the folder, that of another rank `trace-RANK.json`.
    """

    def __init__(self, folder: str | Path, skip: int = 3, steps: int = 3):
        self.folder, self.skip, self.steps = Path(folder), skip, steps
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=activities)
        self.seen = 0

    def __call__(self, report: StepReport) -> None:
        self.seen += 1
        if self.seen == self.skip and not report.last:
            self.profiler.start()
        elif self.skip < self.seen <= self.skip + self.steps and (report.last or self.seen == self.skip + self.steps):
            self.profiler.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.profiler.export_chrome_trace(
                str(self.folder / ("trace.json" if is_main() else f"trace-{rank()}.json"))
            )
