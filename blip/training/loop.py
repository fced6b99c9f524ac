"""The training loop of all stages."""

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
"""Exit code of a process that saved after SIGTERM, so that the same command resumes the run; 130 after Ctrl-C."""
REPEATED_SIGNAL_SECONDS = 1.0
"""A second signal within this time is a duplicate: launchers forward the signals that their process group receives."""

Hook = Callable[[StepReport], None]


class TrainingStopped(SystemExit):
    """Ends the process with its exit code after a stop signal, once the run is saved."""

    def __init__(self, code: int = EXIT_STOPPED) -> None:
        super().__init__(code)


class WaitEndedError(BaseException):
    """A stop signal arrived while the process waited for data, between two steps.

    Not an Exception, so that no handler of bad samples catches it.
    """


class StopSignal(threading.Event):
    """An event that SIGTERM or Ctrl-C sets."""

    number = signal.SIGTERM
    since = 0.0
    waits = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handles both signals; a second one ends the process without another checkpoint."""
        if not self.is_set():
            self.number, self.since = signal.Signals(number), time.monotonic()
            self.set()
            if self.waits:
                raise WaitEndedError
        elif time.monotonic() - self.since > REPEATED_SIGNAL_SECONDS:
            for each in STOPPING:
                signal.signal(each, signal.SIG_DFL)  # a third signal ends the process immediately
            raise SystemExit(128 + number)

    @property
    def code(self) -> int:
        """The exit code for the received signal."""
        return 128 + self.number

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for a wait of unknown length; a stop signal interrupts it if this is the only process."""
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

    `batches` are this process's micro-batches from the engine's current step on, over all epochs. Saves after the last
    step. On SIGTERM or Ctrl-C, saves after the current step and raises TrainingStopped. On a non-finite loss or
    gradient, saves the sample keys and the state before the step and raises NonFiniteError. Always completes a save in
    flight. Raises ValueError if the batches end too early.
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
    """Saves, logs the reason and ends the process. Raises TrainingStopped."""
    if checkpoints:
        checkpoints.save(engine)
        checkpoints.wait()
    if is_main():
        saved = "saved, and goes on from there when it is run again" if checkpoints else "nothing is saved"
        log.warning("stopped by %s after step %d of %d: %s", told.number.name, engine.step, engine.steps, saved)
    raise TrainingStopped(told.code)


def every(steps: int, call: Hook) -> Hook:
    """Returns a hook that calls `call` every `steps` steps, after the last step, and after a stop signal."""

    def hook(report: StepReport) -> None:
        if report.step % steps == 0 or report.last or report.stop:
            call(report)

    return hook


def regularly(steps: int, minutes: float, calls: Sequence[Hook]) -> Hook:
    """Returns a hook that calls `calls` every `steps` steps, after `minutes` without a call, and at the end of the run.

    The calls may be collective, so the main process's clock decides for all processes.
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
    """Saves the sample keys of a failed step, and the state before it if that is finite."""
    if checkpoints:
        checkpoints.save(engine, if_finite=True)
        if is_main():
            evidence = {"step": error.step, "names": error.names, "keys": error.keys}
            checkpoints.store.put(f"non-finite/step-{error.step:08d}.json", json.dumps(evidence, indent=1).encode())


@contextmanager
def stop_signal_handler() -> Iterator[StopSignal]:
    """Yields an event that SIGTERM and Ctrl-C set instead of ending the process."""
    told = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
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
