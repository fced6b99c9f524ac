"""Workers of a job on this machine: started, replaced when they are lost, ended with the step."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blip.config import EXIT_CONFIG, ConfigError
from blip.storage import open_store

REPLACEMENTS = 20
"""So many lost workers, for each that is asked for, end the step."""
GRACE = 30.0
"""Seconds that workers get to give their shards back."""


class WorkerError(RuntimeError):
    """A worker that ended as it must not; the message says how and where its log is."""


@dataclass
class Crew:
    """Worker processes, each with a log of its own in a folder, or none where they speak as this process does."""

    job: str
    size: int
    logs: Path | None
    processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = field(default_factory=dict)
    """Name and process by place, from 0."""
    lost: int = 0

    def working(self) -> bool:
        """Whether workers are at work; lost ones are replaced. Raises WorkerError, and ConfigError for what another could do no better."""
        if not self.processes:
            for place in range(self.size):
                self.start(place)
        codes = {place: process.poll() for place, (_, process) in self.processes.items()}
        for place, code in codes.items():
            if code not in (None, 0):
                self.check(self.processes[place][0], code)
                self.start(place)
        return any(code != 0 for code in codes.values())

    def check(self, name: str, code: int) -> None:
        """Raises where another worker in the place of a lost one would fare no better."""
        self.lost += 1
        words = f"{name} ended with code {code}{self.last_words(name)}"
        if code == EXIT_CONFIG:
            raise ConfigError(words)
        if not open_store(self.job).exists(f"worker/{name}.json") or self.lost > REPLACEMENTS * self.size:
            raise WorkerError(words)

    def start(self, place: int) -> None:
        name = f"worker-{place + 1}-{uuid.uuid4().hex[:6]}"
        cores = max(1, (os.cpu_count() or 1) // self.size)
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ, "LOCAL_RANK": str(place)}
        command = [sys.executable, "-m", "blip.runs.worker", self.job, "--name", name, "--attached"]
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


@contextmanager
def on_this_machine(job: str, size: int, logs: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Workers for a job; call what it gives now and then, until it says that none is at work any more."""
    crew = Crew(job, size, logs)
    try:
        yield crew.working
    finally:
        crew.end()
