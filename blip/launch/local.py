"""Processes of one machine, or of this machine's part in several: torchrun, with the exit codes that tell what happened.

`python -m blip.launch [torchrun's options] -m MODULE ARGS` is torchrun whose exit code is the workers' own.
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

HURRY_SECONDS = 1.0
"""A signal that comes so soon after the first is the same one, on another way."""
SHUTDOWN_SECONDS = 110
"""What workers have after SIGTERM to finish a step and save; less than the two minutes that a pod has."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs torchrun and ends with its workers' exit code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    options = [] if "--shutdown-timeout" in " ".join(args or sys.argv) else [f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    try:
        run.main([*options, *(sys.argv[1:] if args is None else args)])
    except ChildFailedError as e:
        failures = sorted(e.failures.values(), key=lambda failure: failure.timestamp)
        # what is much later than the first was killed for not ending when it should
        sys.exit(exit_code([f.exitcode for f in failures if f.timestamp < failures[0].timestamp + SHUTDOWN_SECONDS / 2]))
    except SignalException as e:
        sys.exit(128 + e.sigval)


def exit_code(codes: Sequence[int]) -> int:
    """One exit code for those of the workers that failed, negative where a signal ended them.

    42 if any met a wrong configuration, else 128 + the signal if one was killed, else the first's own. Torchrun ends the others by
    SIGTERM, and those that lose a rank to a signal may fail in the same moment.
    """
    if EXIT_CONFIG in codes:
        return EXIT_CONFIG
    killed = [128 - code for code in codes if code < 0 and code != -signal.SIGTERM]
    return (killed + [code for code in codes if code > 0] + [128 + signal.SIGTERM])[0]


def local_process_count(asked: int) -> int:
    """Returns how many processes of this machine share the work: as asked for, 0 for one a GPU. Raises ConfigError for more than GPUs."""
    gpus = torch.cuda.device_count()
    if gpus and asked > gpus:
        raise ConfigError(f"{asked} processes need a GPU each, and this machine has {gpus}: ask for fewer")
    return asked or max(1, gpus)


def launch(module: str, args: Sequence[str], processes: int, *, log: str | Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Runs `python -m module args` in so many processes of this machine and gives their exit code.

    0 is success, 42 a wrong configuration, 143 stopped by SIGTERM after saving, 130 by Ctrl-C, above 128 killed by that signal + 128, the
    rest failed. SIGTERM and Ctrl-C here let the workers finish their step and save; the second ends them as they stand. `processes` 0 is
    one a GPU. Output goes to `log` if there is one. Raises ConfigError where there are fewer GPUs than processes.
    """
    processes = local_process_count(processes)
    options = ["--standalone", f"--nproc-per-node={processes}", "--max-restarts=0", f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with open_log(log) as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "blip.launch", *options, "-m", module, *args],
            stdout=output,
            stderr=output and subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, **(env or {})},
            process_group=0,  # Ctrl-C in a terminal reaches this process alone, which passes on what lets workers save
        )
        with passing_on(launcher) as heard:
            code = launcher.wait()
    if code == 128 + signal.SIGTERM and heard:
        return 128 + heard[0]  # the workers all heard SIGTERM, whatever it was here
    return 128 - code if code < 0 else code


@contextmanager
def open_log(path: str | Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
        return
    with Path(path).open("ab") as file:
        yield file


@contextmanager
def passing_on(launcher: subprocess.Popen) -> Iterator[list[int]]:
    """Passes SIGTERM and Ctrl-C on to the launcher as SIGTERM, a second one as SIGKILL to all, and leaves none of its processes behind.

    Gives the signals that were heard so far.
    """
    heard: list[int] = []
    first = 0.0

    def terminate(number: int, _: object) -> None:
        nonlocal first
        if not heard:
            first = time.monotonic()
            launcher.terminate()
        elif time.monotonic() - first > HURRY_SECONDS:
            for process in descendants(launcher.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        heard.append(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait()


def descendants(process: int) -> list[int]:
    """A process and all that it started, directly or not: torchrun's workers are in sessions of their own."""
    children = [int(child) for task in Path(f"/proc/{process}/task").glob("*/children") for child in task.read_text().split()]
    return [process, *(found for child in children for found in descendants(child))]
