"""Worker processes of a job on this machine: started, replaced when they die, and terminated at the end of the step."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blip.config import EXIT_CONFIG, ConfigError
from blip.storage import open_store
from blip.storage.records import parse_record

MAX_LOST = 20
"""Consecutive workers per slot that may be lost before any of them finishes a shard."""
MAX_FAILED = 3
"""Consecutive workers per slot that may fail by themselves (no signal) before they begin."""
BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""Seconds before a worker that died before it began is replaced; doubles with each further one."""
MODULE = "blip.runs.worker"
"""The module of a worker process."""
STOP_SECONDS = 30.0
"""Seconds between SIGTERM, on which workers release their shards, and SIGKILL."""


class WorkerError(RuntimeError):
    """Too many workers died; the message describes the end of the last one and names its log."""


@dataclass
class LocalPool:
    """Worker processes, each with a log file of its own in `logs`; without it they inherit this process's output."""

    job: str
    size: int
    logs: Path | None
    processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = field(default_factory=dict)
    """Name and process by slot, from 0."""
    due: dict[int, float] = field(default_factory=dict)
    """When the slot of a dead worker is filled again (`time.monotonic`)."""
    lost: int = 0
    """Consecutive workers that died before they finished a shard."""
    early: int = 0
    """Consecutive workers that died before they began."""
    failed: int = 0
    """Consecutive workers that failed by themselves before they began."""

    def is_running(self) -> bool:
        """Starts workers, replaces dead ones, and returns whether any is left.

        Raises WorkerError after too many deaths, and ConfigError if a worker ended with exit code 42.
        """
        if not self.processes:
            for slot in range(self.size):
                self.start(slot)
        codes = {slot: process.poll() for slot, (_, process) in self.processes.items()}
        for slot, code in codes.items():
            if code in (None, 0):
                continue
            if slot not in self.due:
                self.due[slot] = time.monotonic() + self.backoff(self.processes[slot][0], code)
            if time.monotonic() >= self.due[slot]:
                del self.due[slot]
                self.start(slot)
        return any(code != 0 for code in codes.values())

    def backoff(self, name: str, code: int) -> float:
        """Returns the seconds after which a dead worker is replaced. Raises as `is_running`."""
        message = f"{name} ended with code {code}{describe_signal(code)}{self.last_log_line(name)}"
        if code == EXIT_CONFIG:
            raise ConfigError(message)
        report = open_store(self.job).get_tagged(f"worker/{name}.json")
        began = report is not None
        finished = began and parse_record(report[0], f"{self.job}/worker/{name}.json").get("shards", 0) > 0
        self.lost = 0 if finished else self.lost + 1
        self.early = 0 if began else self.early + 1
        self.failed = 0 if began or code < 0 else self.failed + 1
        if self.failed >= MAX_FAILED * self.size:
            raise WorkerError(f"{self.failed} workers in a row failed before they began; {message}")
        if self.lost >= MAX_LOST * self.size:
            raise WorkerError(f"{self.lost} workers in a row were lost before one of them finished a shard; {message}")
        if began:
            return 0.0
        return min(BACKOFF * 2 ** ((self.early - 1) // self.size), MAX_BACKOFF)

    def start(self, slot: int) -> None:
        name = f"worker-{slot + 1}-{uuid.uuid4().hex[:6]}"
        cores = max(1, (os.cpu_count() or 1) // self.size)
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ, "LOCAL_RANK": str(slot)}
        command = [sys.executable, "-m", MODULE, self.job, "--name", name, "--attached"]
        with self.open_log(name) as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        self.processes[slot] = name, process

    @contextmanager
    def open_log(self, name: str) -> Iterator[IO[bytes] | None]:
        if self.logs is None:
            yield None
            return
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("wb") as file:
            yield file

    def last_log_line(self, name: str) -> str:
        if self.logs is None:
            return ""
        path = self.logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1] if lines else 'no output'} (log: {path})"

    def stop(self) -> None:
        """Terminates all workers; kills those that take longer than `STOP_SECONDS`."""
        for _, process in self.processes.values():
            process.terminate()
        for _, process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def describe_signal(code: int) -> str:
    """Returns a phrase on the signal that ended a process; empty if none did."""
    if code >= 0:
        return ""
    hint = ", as on a machine that is out of memory" if code == -signal.SIGKILL else ""
    return f" ({signal.Signals(-code).name}{hint})"


@contextmanager
def on_this_machine(job: str, size: int, logs: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Yields a function that keeps `size` workers of a job alive and returns whether any is left; poll it."""
    pool = LocalPool(job, size, logs)
    try:
        yield pool.is_running
    finally:
        pool.stop()
