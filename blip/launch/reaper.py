"""`python -m blip.launch.reaper ALIVE`: deletes jobs whose workflow has ended, for as long as the cluster runs.

A step deletes its own job, but has less than a second for that when its run is terminated, and none when its node is
lost. Kubernetes deletes a job with its workflow only once the workflow itself is deleted, hours later.
"""

import logging
import sys
import time
from pathlib import Path

from blip.launch.job import KubernetesObject
from blip.launch.kubernetes import Cluster
from blip.launch.submission import is_being_deleted, owners_of, status_of
from blip.logs import quiet

log = logging.getLogger("blip.launch.reaper")

PAUSE = 15.0
"""Seconds between two rounds."""
KINDS: list[KubernetesObject] = [
    {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"},
    {"apiVersion": "batch/v1", "kind": "Job"},
]
ALIVE = Path("/tmp/alive")
"""A file that each round touches; its age is the probe of the pod."""
LABELS = "app.kubernetes.io/part-of=blip"


def delete_abandoned(cluster: Cluster) -> list[str]:
    """Deletes unfinished jobs none of whose workflows is running, and returns their names."""
    deleted = []
    for kind in KINDS:
        for job in cluster.labelled(kind, LABELS):
            if is_abandoned(cluster, job):
                cluster.delete(job)
                deleted.append(job["metadata"]["name"])
    return deleted


def is_abandoned(cluster: Cluster, job: KubernetesObject) -> bool:
    """Returns whether a job works on for workflows that have all ended; one without a workflow is nobody's business."""
    workflows = [owner for owner in owners_of(job) if owner["kind"] == "Workflow"]
    if not workflows or status_of(job).finished or is_being_deleted(job):
        return False
    return not any(cluster.is_running(workflow) for workflow in workflows)


def watch(cluster: Cluster, alive: Path) -> None:
    """Deletes abandoned jobs round by round; each touches the file `alive`, whose age the probes of the pod look at."""
    log.info("deletes jobs in %s whose workflow has ended", cluster.namespace)
    while True:
        for name in delete_abandoned(cluster):
            log.warning("job %s is deleted: its workflow has ended", name)
        alive.touch()
        time.sleep(PAUSE)


if __name__ == "__main__":
    quiet()
    watch(Cluster(), Path(sys.argv[1]))
