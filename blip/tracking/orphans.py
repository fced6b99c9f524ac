"""Orphaned runs: MLflow lists them as running although their process has ended."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS_TAG = "process"
"""The tag with the host, process id and start time of the process that records a run."""
ALIVE_TAG = "alive"
"""The tag with the time of a run's last heartbeat, in seconds since 1970."""
PARENT_TAG = "mlflow.parentRunId"
HEARTBEAT_TIMEOUT = 600.0
"""Seconds without a heartbeat after which a run of another host counts as orphaned."""
GROUP_GRACE = 60.0
"""Seconds after its creation in which a group may have no run."""
MAX_RESULTS = 1000


def process_tags() -> dict[str, str]:
    """Returns the tags by which other processes can tell whether this one has ended."""
    return {
        PROCESS_TAG: f"{host_id()} {os.getpid()} {process_start(os.getpid())}",
        ALIVE_TAG: str(int(time.time())),
    }


def host_id() -> str:
    """Returns the id of the scope in which process ids are unique: one boot of a host and one PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname().replace(" ", "_")]
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text(encoding="utf-8").strip(), os.readlink(namespace)]
    return ":".join(parts)


def process_start(pid: int) -> str:
    """Returns the start time of a process of this host in clock ticks since boot, empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = text.rpartition(") ")[2].split()
    return "" if state in "ZX" else rest[18]


def is_orphaned(tags: Mapping[str, str]) -> bool:
    """Whether the process that records a run has ended; False if the tags do not tell."""
    parts = tags.get(PROCESS_TAG, "").split(" ")
    if len(parts) != 3:
        return False
    host, pid, start = parts
    if host == host_id():
        return process_start(int(pid)) != start
    return time.time() - float(tags.get(ALIVE_TAG, "0")) > HEARTBEAT_TIMEOUT


def close_orphans(mlflow: "MlflowClient", experiment: str, group: str, step: str, own: str) -> None:
    """Ends orphaned runs of an experiment as killed.

    Ends alike the earlier attempts of this step in its group on other hosts, and groups without a running run.
    `group` is the id of this run's group and `own` that of the run itself; `step` is the name that is unique to the
    step in its group, or empty.
    """
    running = mlflow.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=MAX_RESULTS)
    groups = {run.info.run_id: run for run in running if is_group(run.data.tags)}
    active_groups = {group}
    for run in running:
        tags, run_id = run.data.tags, run.info.run_id
        if run_id in groups:
            continue
        on_other_host = tags.get(PROCESS_TAG, "").split(" ")[0] != host_id()
        same_step = bool(group and step) and tags.get(PARENT_TAG) == group and run.info.run_name == step
        if run_id != own and ((on_other_host and same_step) or is_orphaned(tags)):
            mlflow.set_terminated(run_id, "KILLED", last_heartbeat(tags))
        else:
            active_groups.add(tags.get(PARENT_TAG, ""))
    for run_id, run in groups.items():
        age = time.time() - run.info.start_time / 1000
        if run_id not in active_groups and age > GROUP_GRACE:
            mlflow.set_terminated(run_id, "KILLED")


def is_group(tags: Mapping[str, str]) -> bool:
    return "group" in tags and PARENT_TAG not in tags


def last_heartbeat(tags: Mapping[str, str]) -> int | None:
    """Returns the time of a run's last heartbeat in milliseconds since 1970, or None if it had none."""
    return int(tags[ALIVE_TAG]) * 1000 if ALIVE_TAG in tags else None


def has_other_running(mlflow: "MlflowClient", experiment: str, group: str, own: str) -> bool:
    """Whether a run of the group other than `own` is running."""
    of_group = f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{group}'"
    runs = mlflow.search_runs([experiment], of_group, max_results=MAX_RESULTS)
    return any(run.info.run_id != own for run in runs)
