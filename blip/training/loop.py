"""The loop of every stage of training."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from blip.batch import Batch
from blip.distributed import is_main
from blip.training.checkpoint import Checkpoints
from blip.training.engine import Engine, NonFiniteError, Report
from blip.training.watchdog import Watchdog

EXIT_STOPPED = 143
"""Exit code of a process that was told to stop and saved: running it again goes on from there."""

Hook = Callable[[Report], None]


class Stopped(SystemExit):
    """The run was told to stop and has saved; ends the process with its own exit code."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


def fit(engine: Engine, batches: Iterable[Batch], hooks: Sequence[Hook] = (), checkpoints: Checkpoints | None = None) -> None:
    """Trains to the engine's last step; after each step every rank calls every hook.

    `batches` are this process's micro-batches from the engine's step on, epoch after epoch. After the last step, and on SIGTERM after
    the step at hand, it saves; then Stopped is raised. A loss or gradient that is not finite raises NonFiniteError after its samples'
    keys and the state before the step are saved. Whatever happens, a save in flight is finished first.
    """
    stream = iter(batches)
    with told_to_stop() as told, finishing(checkpoints), Watchdog(engine.cfg.timeout) as watchdog:
        while engine.step < engine.steps:
            watchdog.feed(f"step {engine.step}")
            began = time.perf_counter()
            micro_batches = list(islice(stream, engine.accumulation))
            waited = time.perf_counter() - began
            if len(micro_batches) < engine.accumulation:
                raise ValueError(f"the batches ended after step {engine.step} of {engine.steps}")
            try:
                report = engine.train(micro_batches, told.is_set())
            except NonFiniteError as error:
                keep_evidence(engine, error, checkpoints)
                raise
            report.waited, report.seconds = waited, time.perf_counter() - began
            for hook in hooks:
                hook(report)
            if checkpoints and (report.stop or report.last):
                checkpoints.save(engine)
            if report.stop and not report.last:
                raise Stopped


def every(steps: int, call: Hook) -> Hook:
    """A hook that calls another after each so many steps, and after the last."""

    def hook(report: Report) -> None:
        if report.step % steps == 0 or report.last:
            call(report)

    return hook


def keep_evidence(engine: Engine, error: NonFiniteError, checkpoints: Checkpoints | None) -> None:
    """Saves what went into a step that failed, and the state before it unless the failure reached that, too."""
    if checkpoints:
        checkpoints.save(engine, if_finite=True)
        if is_main():
            evidence = {"step": error.step, "names": error.names, "keys": error.keys}
            checkpoints.store.put(f"non-finite/step-{error.step:08d}.json", json.dumps(evidence, indent=1).encode())


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of ending the process."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def finishing(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Leaves no save half done."""
    try:
        yield
    finally:
        if checkpoints:
            checkpoints.wait()
