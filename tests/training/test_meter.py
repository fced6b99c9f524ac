import json
from pathlib import Path

import pytest
import torch
from toy import VOCABULARY, WIDTH, ToyTask, batches

from blip.training.engine import Engine, EngineConfig, StepReport
from blip.training.loop import fit
from blip.training.meter import Meter, Profile, peak_of
from blip.training.optimizer import OptimizerConfig, ScheduleConfig


@pytest.fixture
def engine() -> Engine:
    return Engine(
        ToyTask(), EngineConfig(), OptimizerConfig(), ScheduleConfig(), steps=5, steps_per_epoch=4, accumulation=2
    )


def report(step: int, last: bool = False) -> StepReport:
    losses = {"itc": float(step), "lm": 10.0}
    return StepReport(
        step, last, losses, 1e-3 * step, 2.0 * step, samples=16, tokens=96, stop=False, seconds=0.5, waited=0.1
    )


def test_losses_and_speed_are_averaged_over_an_interval_and_the_rest_at_the_end(engine: Engine):
    tracked = {}
    meter = Meter(engine, tracked.__setitem__, every=2)
    for step in (1, 2, 3):
        meter(report(step, last=step == 3))
    assert list(tracked) == [2, 3]
    expected = {"train/itc": 1.5, "train/lm": 10.0, "train/loss": 11.5, "learning_rate": 2e-3, "grad_norm": 3.0}
    assert tracked[2] == pytest.approx(
        expected | {"samples_per_second": 32.0, "tokens_per_second": 192.0, "data_wait": 0.2}
    )
    assert tracked[3]["train/itc"] == 3.0


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_is_known_by_whole_words_of_its_name(device: str, peak: float | None):
    assert peak_of(device) == peak


def test_mfu_is_the_share_of_the_peak_in_the_operations_that_were_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("blip.training.meter.peak_flops", lambda: 1e6)
    tracked = {}
    fit(engine, batches(0, 2), [Meter(engine, tracked.__setitem__, every=5)])
    tokens, sentences = 96, 16
    student = (
        3 * 2 * tokens * 2 * WIDTH * WIDTH + 3 * 2 * (tokens - sentences) * WIDTH * VOCABULARY
    )  # forward, and twice that backward
    assert student < engine.flops < 2 * student, "the student's layers and head, and less for teacher and similarities"
    values = tracked[5]
    assert values["mfu"] == pytest.approx(engine.flops * values["samples_per_second"] / 16 / 1e6)


def test_a_profile_leaves_a_trace_of_the_steps_asked_for(engine: Engine, tmp_path: Path):
    fit(engine, batches(0, 2), [Profile(tmp_path, skip=2, steps=2)])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [e for e in events if e.get("name") == "Optimizer.step#AdamW.step"]
    assert len(steps) == 2
    assert torch.profiler.ProfilerActivity.CPU in torch.profiler.supported_activities()
