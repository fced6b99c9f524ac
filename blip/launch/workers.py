"""Workers that pull shards, as a Job: any number of pods, any of which may be lost at any time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pydantic import Field

from blip.config import EXIT_CONFIG
from blip.launch.handover import fingerprint
from blip.launch.job import WRITABLE, JobConfig, Manifest, labels_of

INDEXED_SINCE = (1, 29)
"""The Kubernetes from which on a Job counts the failures of each index by itself."""
RETRIES = 20


class WorkersConfig(JobConfig):
    workers: int = Field(ge=1)
    """Pods; in each one process a GPU pulls shards."""
    module: str = "blip.runs.worker"
    """What every pod runs on the URI of a job; it ends with success when no shard is left."""
    priority: str = "blip-batch"
    """The PriorityClass of the pods."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm."""
    scratch: str = "200Gi"
    """Size of /scratch, where shards lie while they are worked on."""


def render(cfg: WorkersConfig, owner: Manifest | None = None, indexed: bool = True) -> Manifest:
    """The Job: an Indexed one, in which a lost node costs no retry; or a plain parallel one for a cluster before Kubernetes 1.29.

    Which of the two makes no difference to the work, since workers pull it. Exit code 42 ends either as soon as the cluster can tell.
    """
    spec: Manifest = {"parallelism": cfg.workers, **cfg.deadline(), "template": template(cfg)}
    if indexed:
        spec |= {
            "completions": cfg.workers,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": RETRIES,
            "maxFailedIndexes": cfg.workers // 10,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [EXIT_CONFIG]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
        }
    else:
        # no number of completions: it is done when one worker found nothing left and the others have ended
        spec |= {"backoffLimit": RETRIES * cfg.workers}
    if cfg.queue:
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": cfg.metadata(spec, "worker", owner), "spec": spec}


def template(cfg: WorkersConfig) -> Manifest:
    sizes = {"shm": {"medium": "Memory", "sizeLimit": cfg.shared_memory}, "scratch": {"sizeLimit": cfg.scratch}, "tmp": {}}
    container = {
        "name": "worker",
        "image": cfg.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", cfg.module],
        "args": list(cfg.args),
        "env": cfg.environment(),
        "resources": cfg.resources(),
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in WRITABLE.items()],
    }
    pod: Manifest = {
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


def on_cluster(cfg: WorkersConfig) -> Callable[[str], AbstractContextManager[Callable[[], bool]]]:
    """Returns what starts workers on the cluster for the URI of a job; within, a function says whether they run.

    That function waits between two questions to the API server as long as all who ask it do. It raises ConfigError when a worker ended
    with exit code 42, and JobError when the Job failed otherwise.
    """

    @contextmanager
    def begin(uri: str) -> Iterator[Callable[[], bool]]:
        from blip.launch import kubernetes, submission
        from blip.launch.kubernetes import Cluster

        cluster = Cluster(cfg.namespace)
        owner = cluster.owner()
        name = f"{cfg.name[:29]}-{fingerprint({}, uri, owner['uid'] if owner else '')}"
        asked = cfg.model_copy(update={"name": name, "args": (uri, *cfg.args)})
        job = render(asked, owner, indexed=cluster.version() >= INDEXED_SINCE)

        questioned = -math.inf

        def working() -> bool:
            nonlocal questioned
            time.sleep(max(0.0, questioned + kubernetes.INTERVAL - time.monotonic()))
            questioned = time.monotonic()
            status = submission.look(cluster, job)
            if status.finished:
                submission.settle(cluster, job, status)
            return not status.finished

        with submission.submitted(cluster, job):
            yield working

    return begin
