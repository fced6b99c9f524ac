"""Training in this process: what ends a run, and the state it leaves."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import ToyTask, batches

from blip.batch import Batch
from blip.storage import open_store
from blip.training.checkpoint import CheckpointConfig, Checkpoints
from blip.training.engine import Engine, EngineConfig, NonFiniteError, StepReport, check_teacher
from blip.training.loop import EXIT_STOPPED, TrainingStopped, every, fit, regularly
from blip.training.optimizer import OptimizerConfig, ScheduleConfig


def make_engine(steps: int = 6, zero: int = 0, task: Callable[[], ToyTask] = ToyTask, **options) -> Engine:
    torch.manual_seed(0)
    options = {
        "optimizer": OptimizerConfig(lr=1e-2),
        "schedule": ScheduleConfig(kind="constant"),
        "steps_per_epoch": 4,
    } | options
    return Engine(task(), EngineConfig(zero=zero), steps=steps, seed=3, **options)  # pyright: ignore[reportArgumentType]


def make_checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(open_store(folder), CheckpointConfig(keep=2), {})


def test_hooks_hear_of_every_step_and_of_the_last():
    steps, tens = [], []
    fit(
        make_engine(steps=5),
        batches(0, 1),
        [lambda r: steps.append(r.step), every(2, lambda r: tens.append((r.step, r.last)))],
    )
    assert steps == [1, 2, 3, 4, 5]
    assert tens == [(2, False), (4, False), (5, True)]


def test_the_task_learns():
    losses = []
    fit(make_engine(steps=60), batches(0, 1), [lambda r: losses.append(r.losses["lm"])])
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


class BoundedTask(ToyTask):
    """A task that clamps its temperature, 0.5 at first, to 0.3."""

    def on_step(self, step: int, steps_per_epoch: int) -> list[torch.nn.Parameter]:  # noqa: ARG002
        self.temperature.data.clamp_(max=0.3)
        return [self.temperature]


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_the_optimizer_goes_on_from_what_the_task_changed_before_the_step(zero: int):
    engine = make_engine(zero=zero, task=BoundedTask)
    for step in range(3):
        engine.train(list(islice(batches(step, 1), 1)))
        assert 0.25 < engine.task.temperature.item() < 0.32, "within some steps of its bound"


def test_a_gradient_that_many_rows_share_is_the_same_each_time():
    threads, rows = torch.get_num_threads(), torch.randint(64, (200_000,), generator=torch.Generator().manual_seed(0))
    weights, upstream = (
        torch.zeros(64, 8, requires_grad=True),
        torch.rand(len(rows), 8, generator=torch.Generator().manual_seed(1)),
    )
    make_engine()
    torch.set_num_threads(4)
    try:
        first, *others = [torch.autograd.grad(weights[rows], weights, upstream)[0] for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_a_report_tells_rate_norm_samples_and_tokens():
    reports: list[StepReport] = []
    fit(
        make_engine(schedule=ScheduleConfig(warmup_steps=4, warmup_from=0.0), accumulation=2),
        batches(0, 2),
        [reports.append],
    )
    assert [r.learning_rate for r in reports[:5]] == pytest.approx([0, 2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert {r.samples for r in reports} == {16}
    assert {r.tokens for r in reports} == {96}
    assert all(r.grad_norm > 0 and 0 <= r.waited <= r.seconds for r in reports)


@pytest.mark.parametrize("zero", [0, 1])
def test_the_gradient_is_clipped_at_its_norm(zero: int):
    def norms(clip: float | None) -> tuple[float, float]:
        engine = make_engine(
            zero=zero, optimizer=OptimizerConfig(lr=1e2, grad_clip=clip, eps=1e4)
        )  # Adam's step is then the gradient's
        before = engine.task.student.head.bias.detach().clone()
        report = engine.train(list(islice(batches(0, 1), 1)))
        return report.grad_norm, (engine.task.student.head.bias.detach() - before).norm().item()

    norm, moved = norms(None)
    clipped_norm, clipped_moved = norms(norm / 10)
    assert clipped_norm == pytest.approx(norm, rel=1e-5)
    assert clipped_moved == pytest.approx(moved / 10, rel=1e-2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_STOPPED), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_has_its_own_exit_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals, code: int
):
    engine, checkpoints = make_engine(steps=50), make_checkpoints(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped) as stopped:
        fit(engine, batches(0, 1), [lambda r: os.kill(os.getpid(), number) if r.step == 3 else None], checkpoints)
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    [line] = [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()]
    assert line.startswith(f"stopped by {number.name} after step 4 of 50: saved")
    found = make_checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == engine.step == 4, "the step after the signal is finished, and no other is begun"


def test_the_last_hooks_of_a_run_that_is_stopped_are_called(tmp_path: Path):
    tens = []
    stopping = every(1, lambda r: os.kill(os.getpid(), signal.SIGTERM) if r.step == 6 else None)
    with pytest.raises(TrainingStopped):
        fit(
            make_engine(steps=50),
            batches(0, 1),
            [stopping, every(10, lambda r: tens.append(r.step))],
            make_checkpoints(tmp_path),
        )
    assert tens == [7], "what is kept every ten steps is kept of the seven, too"


def test_a_second_signal_ends_a_run_that_does_not_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("blip.training.loop.REPEATED_SIGNAL_SECONDS", 0.0)

    def interrupt_twice(_: StepReport) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    engine = make_engine(steps=50)
    with pytest.raises(SystemExit) as ended:
        fit(engine, batches(0, 1), [interrupt_twice], make_checkpoints(tmp_path))
    assert ended.value.code == 130
    assert engine.step == 1


def test_data_that_never_comes_is_not_waited_for_once_the_run_is_told_to_stop(tmp_path: Path):
    def stuck() -> Iterator[Batch]:
        yield from islice(batches(0, 1), 2)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)

    engine, checkpoints, began = make_engine(steps=50), make_checkpoints(tmp_path), time.monotonic()
    with pytest.raises(TrainingStopped):
        fit(engine, stuck(), [], checkpoints)
    assert time.monotonic() - began < 30
    found = make_checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == engine.step == 2


class Poisoned(ToyTask):
    """A task whose loss `lm` is not finite at one step."""

    def __init__(self, at: int, value: float):
        super().__init__()
        self.at, self.value, self.now = at, value, -1

    def on_step(self, step: int, steps_per_epoch: int) -> list[torch.nn.Parameter]:
        self.now = step
        return super().on_step(step, steps_per_epoch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().forward(batch)
        if self.now == self.at and batch.keys[0].endswith("-8"):  # the second micro-batch
            losses["lm"] = losses["lm"] * self.value
        return losses


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_healthy_state(tmp_path: Path, zero: int, value: float):
    engine = make_engine(zero=zero, task=lambda: Poisoned(3, value), accumulation=2)
    with pytest.raises(NonFiniteError, match="step 3: not finite: lm; samples: 3-8, 3-9, "):
        fit(engine, batches(0, 2), [], make_checkpoints(tmp_path))
    evidence = json.loads((tmp_path / "non-finite" / "step-00000003.json").read_text())
    assert evidence == {"step": 3, "names": ["lm"], "keys": [f"3-{row}" for row in range(8, 16)]}
    found, healthy = (
        make_checkpoints(tmp_path).newest(),
        make_engine(zero=zero, task=lambda: Poisoned(-1, 1.0), steps=3, accumulation=2),
    )
    fit(healthy, batches(0, 2))
    assert found is not None
    assert found.step == 3
    expected = healthy.state()
    assert [name for name in expected if not torch.equal(expected[name], found.state[name])] == []


class Exploding(ToyTask):
    """A task with a finite loss and a gradient that is not."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return super().forward(batch) | {
            "cliff": self.student.head.bias.sub(self.student.head.bias.detach()).abs().pow(0.5).sum()
        }


@pytest.mark.parametrize("zero", [0, 1])
def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path, zero: int):
    engine = make_engine(zero=zero, task=Exploding)
    before = {name: tensor.clone() for name, tensor in engine.task.state_dict().items()}
    with pytest.raises(NonFiniteError, match="step 0: not finite: gradient; samples: 0-0"):
        fit(engine, batches(0, 1), [], make_checkpoints(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.task.state_dict().items())
    assert (tmp_path / "step-00000000.json").exists()


def test_batches_that_end_too_early_are_an_error():
    with pytest.raises(ValueError, match="the batches ended after step 2 of 6"):
        fit(make_engine(steps=6), islice(batches(0, 1), 2))


def test_zero_3_and_a_momentum_teacher_are_refused_when_the_configuration_is_read():
    with pytest.raises(ValueError, match="momentum teacher: ZeRO-3 leaves each process a part of the weights"):
        check_teacher(EngineConfig(zero=3), True)
    with pytest.raises(ValueError, match=r"set engine\.zero to 2 or less"):
        make_engine(zero=3)
    check_teacher(EngineConfig(zero=3), False)
    check_teacher(EngineConfig(zero=2), True)


def test_bf16_leaves_weights_teacher_queue_and_temperature_in_float32():
    torch.manual_seed(0)
    task = ToyTask()
    kinds = []
    task.student.layers[0].register_forward_hook(lambda _module, _inputs, out: kinds.append(out.dtype))
    engine = Engine(
        task, EngineConfig(precision="bf16"), OptimizerConfig(), ScheduleConfig(), steps=2, steps_per_epoch=2
    )
    fit(engine, batches(0, 1))
    assert set(kinds) == {torch.bfloat16}
    assert {t.dtype for t in engine.state().values() if t.is_floating_point()} == {torch.float32}


def test_a_hook_is_called_by_time_as_well_as_by_steps():
    steps, times = [], [time.monotonic()]
    by_time = regularly(100, 0.3 / 60, [lambda r: steps.append(r.step), lambda _: times.append(time.monotonic())])
    fit(make_engine(steps=20), batches(0, 1), [lambda _: time.sleep(0.05), by_time])
    assert steps[-1] == 20
    assert len(steps) >= 3, "20 steps take more than a second"
    assert all(later - earlier >= 0.25 for earlier, later in pairwise(times[:-1]))


def test_a_hook_waits_for_its_steps_while_there_is_time():
    called = []
    fit(make_engine(steps=20), batches(0, 1), [regularly(8, 10.0, [lambda r: called.append(r.step)])])
    assert called == [8, 16, 20]
