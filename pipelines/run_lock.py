"""The lock of a folder of runs: one run at a time, and an end for a step that a killed run left running."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from pipelines.processes import EXIT_POLL_SECONDS, STEP_GRACE_SECONDS, end_group, is_alive, process_key


class RootError(RuntimeError):
    """A run cannot use its folder; the message names the folder, the reason and the way out."""


class RunLock:
    """A locked file that names its holder: the host, the run's process and the process of the current step."""

    def __init__(self, file: TextIO):
        self.file = file
        self.run = process_key(os.getpid())

    def write_holder(self, step: int | None = None) -> None:
        """Writes the holder; `step` is the process id of the current step, which leads its process group."""
        self.file.seek(0)
        self.file.truncate()
        holder = {"host": socket.gethostname(), "run": self.run, "step": process_key(step) if step else None}
        json.dump(holder, self.file)
        self.file.flush()


@contextlib.contextmanager
def exclusive_run(root: Path, console: Console) -> Iterator[RunLock]:
    """Locks the folder for one run; a step that a killed run left running is ended first.

    Steps inherit the lock, so that a step that outlives its run still holds it. Raises RootError if another run holds
    the lock, and if the folder cannot be written.
    """
    with root_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("a+", encoding="utf-8") as file:
            if not try_lock(file):
                end_orphaned_step(file, root, console)
            lock = RunLock(file)
            lock.write_holder()
            yield lock


@contextlib.contextmanager
def root_errors(root: Path) -> Iterator[None]:
    """Turns errors of the operating system, such as a full disk, into a RootError of one line."""
    try:
        yield
    except FileExistsError:
        raise RootError(f"--root {root} is a file: give a folder") from None
    except BrokenPipeError:  # the reader of this process's output has ended
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        way_out = f"make {root} a folder that can be written to and has room, or give another --root"
        raise RootError(f"{place}{error.strerror or error}; {way_out}") from None


def try_lock(file: TextIO) -> bool:
    """Locks the file unless another process holds the lock, and returns whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_orphaned_step(file: TextIO, root: Path, console: Console) -> None:
    """Ends the step that a killed run left running, and locks the file. Raises RootError if a run holds the lock."""
    file.seek(0)
    try:
        holder = json.load(file)
        run, step = holder["run"], holder["step"]
        on_this_host = holder["host"] == socket.gethostname()
    except (ValueError, KeyError, TypeError):
        run, step, on_this_host = "", None, False  # the holder has not written the file yet
    if not on_this_host or is_alive(run):
        raise RootError(f"another run is at work in {root}: wait for it, or give another --root")
    console.print(
        "[yellow]![/] the step of a killed run is still running: it saves its state and ends", highlight=False
    )
    if step and is_alive(step):
        end_group(int(step.partition(" ")[0]))
    deadline = time.monotonic() + STEP_GRACE_SECONDS
    while not try_lock(file):
        if time.monotonic() > deadline:
            raise RootError(
                f"the step of a killed run in {root} does not end: end its processes, or give another --root"
            )
        time.sleep(EXIT_POLL_SECONDS)
