"""The processes of one machine, alone or as one of several: torchrun with meaningful exit codes.

`python -m blip.launch [torchrun's options] -m MODULE ARGS` is torchrun that exits with the exit code of its workers.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from blip.config import EXIT_CONFIG, ConfigError

REPEAT_SECONDS = 1.0
"""A second signal within so many seconds is a duplicate of the first, delivered by another path."""
SHUTDOWN_SECONDS = 110
"""Seconds for workers to finish a step and save after SIGTERM; less than the 120 seconds of a pod."""


def torchrun(args: Sequence[str] | None = None) -> None:
    """Runs torchrun and exits with the exit code of its workers."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    options = list(sys.argv[1:] if args is None else args)
    if "--shutdown-timeout" not in " ".join(options):
        options = [f"--shutdown-timeout={SHUTDOWN_SECONDS}", *options]
    try:
        run.main(options)
    except ChildFailedError as e:
        failures = sorted(e.failures.values(), key=lambda failure: failure.timestamp)
        # much later ones were killed because they did not end after SIGTERM
        latest = failures[0].timestamp + SHUTDOWN_SECONDS / 2
        sys.exit(exit_code([failure.exitcode for failure in failures if failure.timestamp < latest]))
    except SignalException as e:
        sys.exit(128 + e.sigval)


def exit_code(codes: Sequence[int]) -> int:
    """Returns one exit code for the failed workers' `codes`, which are negative for signals.

    42 (wrong configuration) if any is, else 128 + the signal of the first that was killed, else the first code. SIGTERM
    counts last: torchrun ends the other workers with it. A worker that loses a killed rank may fail first.
    """
    if EXIT_CONFIG in codes:
        return EXIT_CONFIG
    killed = [128 - code for code in codes if code < 0 and code != -signal.SIGTERM]
    failed = [code for code in codes if code > 0]
    return [*killed, *failed, 128 + signal.SIGTERM][0]


def local_process_count(asked: int) -> int:
    """Returns the number of processes on this machine: `asked`, or one per GPU if that is 0.

    Raises ConfigError if `asked` exceeds the number of GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and asked > gpus:
        raise ConfigError(f"{asked} processes need a GPU each, and this machine has {gpus}: ask for fewer")
    return asked or max(1, gpus)


def launch(
    module: str,
    args: Sequence[str],
    processes: int,
    *,
    log: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Runs `python -m module args` in several processes of this machine and returns their exit code.

    0: success; 42: wrong configuration; 143 and 130: stopped by SIGTERM or Ctrl-C, after saving; other codes above 128:
    killed by that signal + 128; any other: failed. The first SIGTERM or Ctrl-C lets the workers finish their step and
    save, the second kills them. `processes` 0 means one per GPU. Output goes to `log`, if given.
    Raises ConfigError if there are fewer GPUs than processes.
    """
    processes = local_process_count(processes)
    options = [
        "--standalone",
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
    ]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with open_log(log) as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "blip.launch", *options, "-m", module, *args],
            stdout=output,
            stderr=output and subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, **(env or {})},
            process_group=0,  # Ctrl-C in a terminal reaches this process only, which forwards SIGTERM
        )
        with forward_signals(launcher) as received:
            code = launcher.wait()
    if code == 128 + signal.SIGTERM and received:
        return 128 + received[0]  # the workers get SIGTERM for either signal
    return 128 - code if code < 0 else code


@contextmanager
def open_log(path: str | Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
        return
    with Path(path).open("ab") as file:
        yield file


@contextmanager
def forward_signals(launcher: subprocess.Popen) -> Iterator[list[int]]:
    """Forwards SIGTERM and Ctrl-C to the launcher as SIGTERM, and a second one to all its processes as SIGKILL.

    Yields the list of received signals. At the end no process of the launcher is left.
    """
    received: list[int] = []
    first = 0.0

    def terminate(number: int, _: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            launcher.terminate()
        elif time.monotonic() - first > REPEAT_SECONDS:
            for process in descendants(launcher.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        received.append(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait()


def descendants(process: int) -> list[int]:
    """Returns a process and its descendants; torchrun's workers are in sessions of their own."""
    found = [process]
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            found += descendants(int(child))
    return found
