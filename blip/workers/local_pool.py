"""Worker processes of a job on this machine: started, replaced when they are lost, ended with the step."""

import json
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

REPLACEMENTS = 20
"""So many workers killed in a row, for each that is asked for, end the step if none of them has finished a shard."""
FAILURES = 3
"""So many workers that failed by themselves in a row, for each that is asked for, before they began, end the step."""
PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a worker that was lost before it began is replaced; after each further one twice as many."""
MODULE = "blip.runs.worker"
"""What every worker runs."""
GRACE = 30.0
"""Seconds that workers get to give their shards back."""


class WorkerError(RuntimeError):
    """Workers that are lost again and again; the message says how the last one ended and where its log is."""


@dataclass
class LocalPool:
    """Worker processes, each with a log of its own in a folder, or none where they write to this process's output."""

    job: str
    size: int
    logs: Path | None
    processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = field(default_factory=dict)
    """Name and process by place, from 0."""
    due: dict[int, float] = field(default_factory=dict)
    """When a lost worker's place is filled again (`time.monotonic`)."""
    lost: int = 0
    """Workers lost since one that had finished a shard."""
    early: int = 0
    """Workers lost in a row before they began."""
    failed: int = 0
    """Workers in a row that failed by themselves before they began."""

    def working(self) -> bool:
        """Whether workers are at work; lost ones are replaced. Raises WorkerError, and ConfigError for what another could do no better."""
        if not self.processes:
            for place in range(self.size):
                self.start(place)
        codes = {place: process.poll() for place, (_, process) in self.processes.items()}
        for place, code in codes.items():
            if code in (None, 0):
                continue
            if place not in self.due:
                self.due[place] = time.monotonic() + self.pause_after(self.processes[place][0], code)
            if time.monotonic() >= self.due[place]:
                del self.due[place]
                self.start(place)
        return any(code != 0 for code in codes.values())

    def pause_after(self, name: str, code: int) -> float:
        """Returns the seconds after which a lost worker is replaced. Raises where another in its place would fare no better."""
        message = f"{name} ended with code {code}{how(code)}{self.last_words(name)}"
        if code == EXIT_CONFIG:
            raise ConfigError(message)
        report = open_store(self.job).get_tagged(f"worker/{name}.json")
        began = report is not None
        finished = began and json.loads(report[0]).get("shards", 0) > 0
        self.lost = 0 if finished else self.lost + 1
        self.early = 0 if began else self.early + 1
        self.failed = 0 if began or code < 0 else self.failed + 1
        if self.failed >= FAILURES * self.size:
            raise WorkerError(f"{self.failed} workers in a row failed before they began; {message}")
        if self.lost >= REPLACEMENTS * self.size:
            raise WorkerError(f"{self.lost} workers in a row were lost before one of them finished a shard; {message}")
        return 0.0 if began else min(PAUSE * 2 ** ((self.early - 1) // self.size), LONGEST_PAUSE)

    def start(self, place: int) -> None:
        name = f"worker-{place + 1}-{uuid.uuid4().hex[:6]}"
        cores = max(1, (os.cpu_count() or 1) // self.size)
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ, "LOCAL_RANK": str(place)}
        command = [sys.executable, "-m", MODULE, self.job, "--name", name, "--attached"]
        with self.log(name) as log:
            self.processes[place] = name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)

    @contextmanager
    def log(self, name: str) -> Iterator[IO[bytes] | None]:
        if self.logs is None:
            yield None
            return
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("wb") as file:
            yield file

    def last_words(self, name: str) -> str:
        if self.logs is None:
            return ""
        path = self.logs / f"{name}.log"
        *_, last = ["", *path.read_text(errors="replace").strip().splitlines()]
        return f": {last or 'without a word'} (log: {path})"

    def end(self) -> None:
        for _, process in self.processes.values():
            process.terminate()
        for _, process in self.processes.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def how(code: int) -> str:
    """Returns which signal ended a process, in words, if one did."""
    if code >= 0:
        return ""
    memory = ", which is what a machine does that runs out of memory" if code == -signal.SIGKILL else ""
    return f" ({signal.Signals(-code).name}{memory})"


@contextmanager
def on_this_machine(job: str, size: int, logs: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Starts workers for a job; call what it returns now and then, until it says that none is at work any more."""
    pool = LocalPool(job, size, logs)
    try:
        yield pool.working
    finally:
        pool.end()
