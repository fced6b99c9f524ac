"""Workers of a shard queue as a Kubernetes Job: any number of pods, each of which may be lost at any time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pydantic import Field

from blip.config import EXIT_CONFIG
from blip.launch.handover import fingerprint
from blip.launch.job import WRITABLE, JobConfig, KubernetesObject, labels_of

INDEXED_SINCE = (1, 29)
"""The first version of Kubernetes with a backoff limit per index of a Job."""
RETRIES = 20
"""Failures per pod before the Job fails."""


class WorkersConfig(JobConfig):
    workers: int = Field(ge=1)
    """Pods, each with one worker process per GPU."""
    module: str = "blip.runs.worker"
    """The module of every pod, called with the URI of a job; it succeeds when no shard is left."""
    priority: str = "blip-batch"
    """The PriorityClass of the pods."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm."""
    scratch: str = "200Gi"
    """Size of /scratch, which holds the shards in progress."""


def render_workers(cfg: WorkersConfig, owner: KubernetesObject | None = None, indexed: bool = True) -> KubernetesObject:
    """Returns an Indexed Job, in which a lost node costs no retry, or a plain one for clusters before Kubernetes 1.29.

    Workers pull their shards, so both process the same. In an Indexed Job exit code 42 fails the whole Job.
    """
    spec: KubernetesObject = {"parallelism": cfg.workers, **cfg.deadline(), "template": pod_template(cfg)}
    if indexed:
        spec |= {
            "completions": cfg.workers,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": RETRIES,
            "maxFailedIndexes": cfg.workers // 10,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "worker", "operator": "In", "values": [EXIT_CONFIG]},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
        }
    else:
        # without completions, the Job succeeds once one worker has succeeded and all have ended
        spec |= {"backoffLimit": RETRIES * cfg.workers}
    if cfg.queue:
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": cfg.metadata(spec, "worker", owner), "spec": spec}


def pod_template(cfg: WorkersConfig) -> KubernetesObject:
    sizes = {
        "shm": {"medium": "Memory", "sizeLimit": cfg.shared_memory},
        "scratch": {"sizeLimit": cfg.scratch},
        "tmp": {},
    }
    container = {
        "name": "worker",
        "image": cfg.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", cfg.module],
        "args": list(cfg.args),
        "env": cfg.environment(),
        "resources": cfg.resources(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in WRITABLE.items()],
    }
    pod: KubernetesObject = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "priorityClassName": cfg.priority,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **cfg.placement(),
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": sizes[name]} for name in WRITABLE],
    }
    return {"metadata": {"labels": labels_of("worker")}, "spec": pod}


def workers_on_cluster(cfg: WorkersConfig) -> Callable[[str], AbstractContextManager[Callable[[], bool]]]:
    """Returns a function that starts workers on the cluster for a job's URI and yields whether they are running.

    The yielded function sends at most one request to the API server per `kubernetes.INTERVAL`. It raises ConfigError if
    a worker ended with exit code 42, and JobError if the Job failed otherwise.
    """

    @contextmanager
    def start_workers(uri: str) -> Iterator[Callable[[], bool]]:
        from blip.launch import kubernetes, submission
        from blip.launch.kubernetes import Cluster

        cluster = Cluster(cfg.namespace)
        owner = cluster.owner()
        name = f"{cfg.name[:29]}-{fingerprint({}, uri, owner['uid'] if owner else '')}"
        named = cfg.model_copy(update={"name": name, "args": (uri, *cfg.args)})
        job = render_workers(named, owner, indexed=cluster.version() >= INDEXED_SINCE)

        requested = -math.inf

        def is_running() -> bool:
            nonlocal requested
            time.sleep(max(0.0, requested + kubernetes.INTERVAL - time.monotonic()))
            requested = time.monotonic()
            status = submission.read_status(cluster, job)
            if status.finished:
                submission.check_success(cluster, job, status)
            return not status.finished

        with submission.submitted(cluster, job):
            yield is_running

    return start_workers
