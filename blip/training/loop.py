"""The loop of every stage of training."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import NoReturn

import torch

from blip.batch import Batch
from blip.distributed import all_reduce_sum, device, is_main, world
from blip.training.checkpoint import Checkpoints
from blip.training.engine import Engine, NonFiniteError, StepReport
from blip.training.watchdog import Watchdog

log = logging.getLogger(__name__)

EXIT_STOPPED = 143
"""Exit code of a process that SIGTERM told to stop and that saved: running it again goes on from there. 130 is
Ctrl-C's.
"""
REPEATED_SIGNAL_SECONDS = 1.0
"""A signal that comes so soon after the first is the same one, on another way: a launcher passes on what its group
hears, too.
"""

Hook = Callable[[StepReport], None]


class TrainingStopped(SystemExit):
    """The run was told to stop and has saved; ends the process with its own exit code."""

    def __init__(self, code: int = EXIT_STOPPED) -> None:
        super().__init__(code)


class WaitEndedError(BaseException):
    """The process was told to stop while it waited for data, when no step is at hand; no error, which a bad sample
    might be taken for.
    """


class StopSignal(threading.Event):
    """Whether this process was told to stop, by SIGTERM or by Ctrl-C."""

    number = signal.SIGTERM
    since = 0.0
    waits = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Is the handler of both signals; the second one ends the process as it stands."""
        if not self.is_set():
            self.number, self.since = signal.Signals(number), time.monotonic()
            self.set()
            if self.waits:
                raise WaitEndedError
        elif time.monotonic() - self.since > REPEATED_SIGNAL_SECONDS:
            for each in STOPPING:
                signal.signal(each, signal.SIG_DFL)  # a third ends it at once
            raise SystemExit(128 + number)

    @property
    def code(self) -> int:
        """The exit code of a process that was told so."""
        return 128 + self.number

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A time in which no other process counts on this one, so that it need not be waited for: data may never
        come.
        """
        self.waits = world() == 1
        try:
            yield
        finally:
            self.waits = False


STOPPING = (signal.SIGTERM, signal.SIGINT)


def fit(
    engine: Engine, batches: Iterable[Batch], hooks: Sequence[Hook] = (), checkpoints: Checkpoints | None = None
) -> None:
    """Trains to the engine's last step; after each step every rank calls every hook.

    `batches` are this process's micro-batches from the engine's step on, epoch after epoch. After the last step, and on
    SIGTERM or Ctrl-C after the step at hand, it saves; then TrainingStopped is raised. A loss or gradient that is not
    finite raises NonFiniteError after its samples' keys and the state before the step are saved. Whatever happens, a
    save in flight is finished first.
    """
    stream = iter(batches)
    with stop_signal_handler() as told, finishing_saves(checkpoints), Watchdog(engine.cfg.timeout) as watchdog:
        while engine.step < engine.steps:
            watchdog.feed(f"step {engine.step}")
            began = time.perf_counter()
            try:
                with told.waiting():
                    micro_batches = list(islice(stream, engine.accumulation))
            except WaitEndedError:
                stop(engine, checkpoints, told)
            waited = time.perf_counter() - began
            if len(micro_batches) < engine.accumulation:
                raise ValueError(f"the batches ended after step {engine.step} of {engine.steps}")
            try:
                report = engine.train(micro_batches, told.is_set())
            except NonFiniteError as error:
                save_evidence(engine, error, checkpoints)
                raise
            report.waited, report.seconds = waited, time.perf_counter() - began
            for hook in hooks:
                hook(report)
            if report.stop and not report.last:
                stop(engine, checkpoints, told)
            if checkpoints and report.last:
                checkpoints.save(engine)


def stop(engine: Engine, checkpoints: Checkpoints | None, told: StopSignal) -> NoReturn:
    """Saves and ends the process, with a line that says so."""
    if checkpoints:
        checkpoints.save(engine)
        checkpoints.wait()
    if is_main():
        saved = "saved, and goes on from there when it is run again" if checkpoints else "nothing is saved"
        log.warning("stopped by %s after step %d of %d: %s", told.number.name, engine.step, engine.steps, saved)
    raise TrainingStopped(told.code)


def every(steps: int, call: Hook) -> Hook:
    """A hook that calls another after each so many steps, after the last, and after one that ends the run before."""

    def hook(report: StepReport) -> None:
        if report.step % steps == 0 or report.last or report.stop:
            call(report)

    return hook


def regularly(steps: int, minutes: float, calls: Sequence[Hook]) -> Hook:
    """Returns a hook that calls others after each so many steps, after so many minutes without a call, and at the end.

    The calls may be collective, so the main process's clock decides for all.
    """
    last = time.monotonic()

    def hook(report: StepReport) -> None:
        nonlocal last
        is_late = is_main() and time.monotonic() - last >= 60 * minutes
        late = all_reduce_sum(torch.tensor(float(is_late), device=device())).item() > 0
        if late or report.step % steps == 0 or report.last or report.stop:
            for call in calls:
                call(report)
            last = time.monotonic()

    return hook


def save_evidence(engine: Engine, error: NonFiniteError, checkpoints: Checkpoints | None) -> None:
    """Saves what went into a step that failed, and the state before it unless the failure reached that, too."""
    if checkpoints:
        checkpoints.save(engine, if_finite=True)
        if is_main():
            evidence = {"step": error.step, "names": error.names, "keys": error.keys}
            checkpoints.store.put(f"non-finite/step-{error.step:08d}.json", json.dumps(evidence, indent=1).encode())


@contextmanager
def stop_signal_handler() -> Iterator[StopSignal]:
    """An event that SIGTERM and Ctrl-C set, in place of ending the process."""
    told = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield told
        return
    before = {number: signal.signal(number, told.handle) for number in STOPPING}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing_saves(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Waits on exit for a save in flight."""
    try:
        yield
    finally:
        if checkpoints:
            checkpoints.wait()
