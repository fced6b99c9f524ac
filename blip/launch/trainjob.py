"""Training on several nodes, as a TrainJob of Kubeflow Trainer."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from blip.launch.handover import INDEX_FILE, delete_all, download_folders, fingerprint, upload_folders
from blip.launch.job import JobConfig, KubernetesObject, labels_of
from blip.storage import StoreError, open_store

MANAGER = "blip.internal/pipeline"
RUNTIME = "blip-torch-a100"
"""The default ClusterTrainingRuntime."""
GRACE_SECONDS = 120
"""Seconds between SIGTERM and SIGKILL for a pod; a little more than the launcher gives its workers."""


class TrainJobConfig(JobConfig):
    nodes: int = Field(ge=1)
    processes: int = Field(ge=1)
    """Processes per node, one for each GPU."""
    module: str = "blip.cli"
    """The module of every process; it reads `/scratch/in/NAME` and writes `/scratch/out/NAME`."""
    handover: str = Field(pattern=r"^s3://")
    """The URI under which inputs and outputs pass through the store."""
    runtime: str = RUNTIME
    """The ClusterTrainingRuntime, which defines restarts, scratch space and security."""


def render_trainjob(cfg: TrainJobConfig, owner: KubernetesObject | None = None) -> KubernetesObject:
    """Returns the TrainJob: one pod per node, joined by torchrun, restarted as a whole if a node is lost.

    With a queue it is created suspended, and Kueue starts it when all its nodes fit.
    """
    cores = 1 if cfg.cpu.endswith("m") else int(float(cfg.cpu))
    threads = max(1, cores // cfg.processes)
    command = ["python", "-m", "blip.launch.node", cfg.handover, "--max-restarts=0", "-m", cfg.module]
    pod = {**cfg.placement(), "terminationGracePeriodSeconds": GRACE_SECONDS}
    template = {"metadata": {"labels": labels_of("trainer")}, "spec": pod}
    patch = {"name": "node", "template": {"spec": {"template": template}}}
    spec: KubernetesObject = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": cfg.runtime},
        **cfg.deadline(),
        "trainer": {
            "image": cfg.image,
            "numNodes": cfg.nodes,
            "numProcPerNode": cfg.processes,
            "command": command,
            "args": list(cfg.args),
            "resourcesPerNode": cfg.resources(),
            "env": [{"name": "OMP_NUM_THREADS", "value": str(threads)}, *cfg.environment()],
        },
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patch]}}}}
        ],
    }
    if cfg.queue:
        spec["suspend"] = True
    kind = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
    return {**kind, "metadata": cfg.metadata(spec, "trainer", owner), "spec": spec}


def run_trainjob(cfg: TrainJobConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Uploads the input folders, submits the job or attaches to it, waits for its end, and downloads the outputs.

    The job's name ends in a fingerprint of its inputs, arguments and owner, so that only another attempt of the same
    step attaches to it. The transferred objects are deleted at the end.
    Raises ConfigError if a process ended with exit code 42, JobError if the job failed otherwise, and StoreError if it
    left other folders than the outputs.
    """
    from blip.launch import submission
    from blip.launch.kubernetes import Cluster

    cluster = Cluster(cfg.namespace)
    owner = cluster.owner()
    name = f"{cfg.name[:29]}-{fingerprint(inputs, *cfg.args, owner['uid'] if owner else '')}"
    store = open_store(cfg.handover).join(name)
    job = render_trainjob(cfg.model_copy(update={"name": name, "handover": store.uri}), owner)
    if not store.exists(f"out/{INDEX_FILE}"):
        upload_folders(inputs, store.join("in"))
        submission.delete_succeeded(cluster, job)  # an earlier attempt fetched and deleted its outputs
        submission.run_job(cluster, job)

    def place(folder: str) -> Path:
        if folder not in outputs:
            raise StoreError(f"{store.uri}/out holds {folder!r}; the outputs of the job are {', '.join(outputs)}")
        return outputs[folder]

    download_folders(store.join("out"), place)
    delete_all(store)
