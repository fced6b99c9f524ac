"""Which runs in MLflow say that they go on though their process is gone, and their end."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS, ALIVE = "process", "alive"
"""Tags: which process keeps the record of a run, and when it last said so (seconds since 1970)."""
PARENT = "mlflow.parentRunId"
SILENT = 600.0
"""Seconds without a word after which a run of another machine counts as left behind."""
BEGINNING = 60.0
"""Seconds after which a group has its first run."""
MOST = 1000


def marks() -> dict[str, str]:
    """Returns the tags by which others find out whether this process is gone."""
    return {PROCESS: f"{machine()} {os.getpid()} {started(os.getpid())}", ALIVE: str(int(time.time()))}


def machine() -> str:
    """Returns a name for where process numbers mean the same: a boot of a machine and a namespace of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname().replace(" ", "_")]
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text().strip(), os.readlink(namespace)]
    return ":".join(parts)


def started(pid: int) -> str:
    """Returns when a process of this machine began, in its own count; empty when it is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def is_left_behind(tags: Mapping[str, str]) -> bool:
    """Whether the process that keeps a run is gone; False where nothing tells."""
    parts = tags.get(PROCESS, "").split(" ")
    if len(parts) != 3:
        return False
    where, pid, began = parts
    if where == machine():
        return started(int(pid)) != began
    return time.time() - float(tags.get(ALIVE, "0")) > SILENT


def close_left_behind(mlflow: "MlflowClient", experiment: str, group: str, step: str, own: str) -> None:
    """Ends as killed: runs of the experiment whose process is gone, earlier runs of this step in this group, and groups without a run.

    `group` is the id of this run's group, `own` of the run itself; `step` is the name that no other step of the group has, if there is one.
    """
    running = mlflow.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=MOST)
    heads = {run.info.run_id: run for run in running if is_group(run.data.tags)}
    busy = {group}
    for run in running:
        tags, run_id = run.data.tags, run.info.run_id
        if run_id in heads:
            continue
        elsewhere = tags.get(PROCESS, "").split(" ")[0] != machine()
        earlier_attempt = elsewhere and bool(group and step) and tags.get(PARENT) == group and run.info.run_name == step
        if run_id != own and (earlier_attempt or is_left_behind(tags)):
            mlflow.set_terminated(run_id, "KILLED", last_seen(tags))
        else:
            busy.add(tags.get(PARENT, ""))
    for run_id, run in heads.items():
        if run_id not in busy and time.time() - run.info.start_time / 1000 > BEGINNING:
            mlflow.set_terminated(run_id, "KILLED")


def is_group(tags: Mapping[str, str]) -> bool:
    return "group" in tags and PARENT not in tags


def last_seen(tags: Mapping[str, str]) -> int | None:
    """Returns the milliseconds since 1970 when a run last said that it goes on."""
    return int(tags[ALIVE]) * 1000 if ALIVE in tags else None


def has_running(mlflow: "MlflowClient", experiment: str, group: str, but: str) -> bool:
    """Whether another run of a group goes on."""
    within = f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{group}'"
    return any(run.info.run_id != but for run in mlflow.search_runs([experiment], within, max_results=MOST))
