"""Processes and process groups of this machine."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

STEP_GRACE_SECONDS = 20.0
"""Seconds from SIGTERM to SIGKILL, in which a step saves its state."""
EXIT_POLL_SECONDS = 0.05
"""Seconds between two checks whether a process has ended."""


def process_key(pid: int) -> str:
    """Returns the id and start time of a process, which together are unique."""
    return f"{pid} {start_time(pid)}"


def is_alive(key: str) -> bool:
    """Whether the process with this key is running."""
    pid, _, started = key.partition(" ")
    return bool(started) and start_time(int(pid)) == started


def start_time(pid: int) -> str:
    """Returns the start time of a process in clock ticks since boot, empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(") ")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


class Child(Protocol):
    """A process that leads a process group; its methods are those of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


def end_process(child: Child) -> None:
    """Ends a child and its process group: by SIGTERM, so that it saves its state, then by SIGKILL."""
    # a second Ctrl-C skips the grace period
    with contextlib.suppress(KeyboardInterrupt):
        if child.poll() is None:
            end_group(child.pid, child.poll)
    # workers may outlive the process that started them
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def end_group(group: int, reap: Callable[[], object] = lambda: None) -> None:
    """Sends SIGTERM to a process group, waits up to STEP_GRACE_SECONDS for its processes to end, and sends SIGKILL.

    Waits for all processes, since the shell that leads a step's group may end before the step has saved its state.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + STEP_GRACE_SECONDS
        while running_processes(group) and time.monotonic() < deadline:
            reap()
            time.sleep(EXIT_POLL_SECONDS)
        os.killpg(group, signal.SIGKILL)


def running_processes(group: int) -> list[int]:
    """Returns the ids of the processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            state, _, pgrp = text.rpartition(") ")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found
