"""The life cycle of a cluster job in the step that requests it: submit or attach, follow the log, cancel."""

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
from blip.launch.job import SPEC_ANNOTATION, KubernetesObject
from blip.launch.kubernetes import Cluster, selector

log = logging.getLogger(__name__)


class JobError(RuntimeError):
    """A job that failed on the cluster; the message holds the cluster's reason."""


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
        return f"{self.state.value} ({self.reason})" if self.reason else self.state.value


def status_of(job: KubernetesObject) -> Status:
    """Returns the status of a Job or TrainJob from its conditions."""
    conditions = job.get("status", {}).get("conditions", [])
    true = {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
    if "Failed" in true:
        return Status(State.FAILED, reason_of(true["Failed"]))
    if "Complete" in true:
        return Status(State.SUCCEEDED)
    if "Suspended" in true:
        return Status(State.QUEUED, reason_of(true["Suspended"]))
    return Status(State.RUNNING)


def reason_of(condition: KubernetesObject) -> str:
    texts = [condition.get("reason"), condition.get("message")]
    return ": ".join(text for text in texts if text)


def run_job(cluster: Cluster, job: KubernetesObject) -> None:
    """Submits a job, or attaches to a running one of its name, and prints the first worker's log until the job ends.

    Raises ConfigError if a process ended with exit code 42, and JobError if the job failed otherwise.
    """
    shown: Status | None = None
    seen: dict[str, str] = {}
    with submitted(cluster, job):
        while True:
            status = read_status(cluster, job)
            if status != shown:
                log.info("job %s %s", job["metadata"]["name"], status)
                shown = status
            for line in cluster.lines(job, seen):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            if status.finished:
                check_success(cluster, job, status)
                return
            time.sleep(kubernetes.INTERVAL)


@contextmanager
def submitted(cluster: Cluster, job: KubernetesObject) -> Iterator[None]:
    """Submits the job on entry; on exit before the job's end, for example by SIGTERM, deletes it.

    A job whose owner, the workflow, is still running is not deleted: this process has failed or its pod is evicted, and
    the next attempt of the step attaches to the job.
    """
    name = job["metadata"]["name"]
    with raise_on_sigterm():
        create_or_attach(cluster, job)
        try:
            yield
        finally:
            found = cluster.read(job)
            if found is not None and not status_of(found).finished and not is_being_deleted(found):
                if any(cluster.is_running(owner) for owner in owners_of(found)):
                    log.warning("job %s keeps running: the next attempt of this step attaches to it", name)
                else:
                    log.warning("job %s is cancelled", name)
                    cluster.delete(job)


def create_or_attach(cluster: Cluster, job: KubernetesObject) -> None:
    """Creates the job, or attaches to the one that an earlier attempt created.

    A failed job is replaced and resumes from its checkpoints, unless its configuration is wrong. A job of another run
    gets this run's workflow as a further owner, so that it outlives the other one. Raises JobError if a job of this
    name with another specification is running.
    """
    name = job["metadata"]["name"]
    while not cluster.create(job):
        found = cluster.read(job)
        if found is None:
            continue
        status = status_of(found)
        if not is_being_deleted(found):
            same = specification_of(found) == specification_of(job)
            if not same and not status.finished:
                raise JobError(f"another job of the name {name} {status}: choose another name, or delete that job")
            if same and (status.state is not State.FAILED or EXIT_CONFIG in cluster.exit_codes(job)):
                if not is_owned_alike(cluster, found, job):
                    continue
                log.info("attached to job %s, which %s", name, status)
                return
        log.info("job %s is replaced: it %s", name, "is being deleted" if is_being_deleted(found) else status)
        delete_and_wait(cluster, job)


def is_owned_alike(cluster: Cluster, found: KubernetesObject, job: KubernetesObject) -> bool:
    """Adds the job's owners to those of the existing one; returns False if that was changed or deleted meanwhile."""
    known = {owner["uid"] for owner in owners_of(found)}
    missing = [owner for owner in owners_of(job) if owner["uid"] not in known]
    return all(cluster.add_owner(found, owner) for owner in missing)


def owners_of(job: KubernetesObject) -> list[KubernetesObject]:
    return job["metadata"].get("ownerReferences", [])


def is_being_deleted(job: KubernetesObject) -> bool:
    return "deletionTimestamp" in job["metadata"]


def specification_of(job: KubernetesObject) -> str | None:
    """Returns the digest of a job's specification."""
    return job["metadata"].get("annotations", {}).get(SPEC_ANNOTATION)


def delete_succeeded(cluster: Cluster, job: KubernetesObject) -> None:
    """Deletes the job of this name if it has succeeded, so that it can be created again."""
    found = cluster.read(job)
    if found is not None and status_of(found).state is State.SUCCEEDED:
        delete_and_wait(cluster, job)


def delete_and_wait(cluster: Cluster, job: KubernetesObject) -> None:
    """Deletes a job and waits until its name is free."""
    cluster.delete(job)
    while cluster.read(job) is not None:
        time.sleep(kubernetes.INTERVAL)


def read_status(cluster: Cluster, job: KubernetesObject) -> Status:
    """Returns the status of the job. Raises JobError if it does not exist.

    A plain Job with exit code 42 counts as failed, although the cluster would retry it.
    """
    found = cluster.read(job)
    if found is None:
        raise JobError(f"job {job['metadata']['name']} was deleted by another program or person")
    if "backoffLimit" in job["spec"] and EXIT_CONFIG in cluster.exit_codes(job):
        return Status(State.FAILED)
    return status_of(found)


def check_success(cluster: Cluster, job: KubernetesObject, status: Status) -> None:
    """Raises ConfigError if a failed job ended with exit code 42, for which a retry cannot help, else JobError."""
    name = job["metadata"]["name"]
    if status.state is State.SUCCEEDED:
        return
    if EXIT_CONFIG in cluster.exit_codes(job):
        if "backoffLimit" in job["spec"]:
            cluster.delete(job)
        raise ConfigError(
            f"job {name} ended with exit code {EXIT_CONFIG}: its configuration is wrong, as its log above says"
        )
    raise JobError(
        f"job {name} {status}; the logs of its pods have details: "
        f"kubectl -n {cluster.namespace} logs -l {selector(job)}"
    )


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Turns the first SIGTERM into SystemExit and ignores further ones, so that the enclosed code can clean up."""

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
