"""The life of a job on a cluster, as the step sees it that asked for it: submitted or attached to, followed, cancelled."""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from blip.config import EXIT_CONFIG, ConfigError
from blip.launch import kubernetes
from blip.launch.job import SPEC, Manifest
from blip.launch.kubernetes import Cluster, selector

log = logging.getLogger(__name__)


class JobError(RuntimeError):
    """A job that failed on the cluster; the message says what the cluster says of it."""


class State(Enum):
    QUEUED = "waits for its turn"
    RUNNING = "runs"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    state: State
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.state in (State.SUCCEEDED, State.FAILED)

    def __str__(self) -> str:
        return f"{self.state.value}{f' ({self.reason})' if self.reason else ''}"


def status_of(job: Manifest) -> Status:
    """What the conditions of a Job or TrainJob say."""
    true = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
    for kind, state in (("Failed", State.FAILED), ("Complete", State.SUCCEEDED), ("Suspended", State.QUEUED)):
        if kind in true:
            reason = ": ".join(filter(None, (true[kind].get("reason"), true[kind].get("message"))))
            return Status(state, "" if state is State.SUCCEEDED else reason)
    return Status(State.RUNNING)


def run(cluster: Cluster, job: Manifest) -> None:
    """Submits a job, or attaches to the one of its name, and shows the first worker's log until it ends.

    Raises ConfigError when a process ended with exit code 42, and JobError when the job failed otherwise.
    """
    shown: Status | None = None
    seen: dict[str, str] = {}
    with submitted(cluster, job):
        while True:
            status = look(cluster, job)
            if status != shown:
                log.info("job %s %s", job["metadata"]["name"], status)
                shown = status
            for line in cluster.lines(job, seen):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            if status.finished:
                return settle(cluster, job, status)
            time.sleep(kubernetes.INTERVAL)


@contextmanager
def submitted(cluster: Cluster, job: Manifest) -> Iterator[None]:
    """Has the job on the cluster, and deletes it when it is left before it ended, as by SIGTERM.

    It is not deleted when it belongs to a workflow that goes on: then this process has failed, or its pod has to leave its node, and the
    step's next attempt attaches to the job.
    """
    name, owners = job["metadata"]["name"], job["metadata"].get("ownerReferences", [])
    with terminable():
        submit(cluster, job)
        try:
            yield
        finally:
            there = cluster.read(job)
            if there is not None and not status_of(there).finished and "deletionTimestamp" not in there["metadata"]:
                if any(cluster.is_running(owner) for owner in owners):
                    log.warning("job %s runs on without this process: the next attempt of this step attaches to it", name)
                else:
                    log.warning("job %s is cancelled", name)
                    cluster.delete(job)


def submit(cluster: Cluster, job: Manifest) -> None:
    """Creates the job, or attaches to the one that an earlier attempt created.

    One that failed is replaced, since it goes on from its checkpoints; not so one whose configuration is wrong. Raises JobError when a
    job of this name runs that was asked for differently.
    """
    name = job["metadata"]["name"]
    while not cluster.create(job):
        there = cluster.read(job)
        if there is None:
            continue
        status, going = status_of(there), "deletionTimestamp" in there["metadata"]
        same = there["metadata"].get("annotations", {}).get(SPEC) == job["metadata"]["annotations"][SPEC]
        if not same and not going and not status.finished:
            raise JobError(f"another job of the name {name} {status}: give this one another name, or delete that one")
        if same and not going and (status.state is not State.FAILED or EXIT_CONFIG in cluster.exit_codes(job)):
            log.info("attached to job %s, which %s", name, status)
            return
        log.info("job %s is created again: the one there %s", name, "is being deleted" if going else status)
        delete_wholly(cluster, job)


def forget_finished(cluster: Cluster, job: Manifest) -> None:
    """Deletes the job of this name if it succeeded, so that it is created again."""
    there = cluster.read(job)
    if there is not None and status_of(there).state is State.SUCCEEDED:
        delete_wholly(cluster, job)


def delete_wholly(cluster: Cluster, job: Manifest) -> None:
    """Deletes a job and waits until its name is free."""
    cluster.delete(job)
    while cluster.read(job) is not None:
        time.sleep(kubernetes.INTERVAL)


def look(cluster: Cluster, job: Manifest) -> Status:
    """How the job is; a plain Job whose configuration is wrong counts as failed, though the cluster would try on."""
    there = cluster.read(job)
    if there is None:
        raise JobError(f"job {job['metadata']['name']} was deleted by somebody else")
    hopeless = "backoffLimit" in job["spec"] and EXIT_CONFIG in cluster.exit_codes(job)
    return Status(State.FAILED) if hopeless else status_of(there)


def settle(cluster: Cluster, job: Manifest, status: Status) -> None:
    """Raises what a failed job calls for: ConfigError where trying again cannot help, else JobError."""
    name = job["metadata"]["name"]
    if status.state is State.SUCCEEDED:
        return
    if EXIT_CONFIG in cluster.exit_codes(job):
        if "backoffLimit" in job["spec"]:
            cluster.delete(job)
        raise ConfigError(f"job {name} ended with exit code {EXIT_CONFIG}: its configuration is wrong, how stands in its log above")
    raise JobError(f"job {name} {status}; why stands in the logs of its pods: kubectl -n {cluster.namespace} logs -l {selector(job)}")


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM an exception, once: `finally` and `except` see it, and a second one does not disturb them."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
