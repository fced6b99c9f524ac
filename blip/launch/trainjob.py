"""Training on several nodes, as a TrainJob of Kubeflow Trainer."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from blip.launch.handover import INDEX, fingerprint, receive, remove, send
from blip.launch.job import JobConfig, Manifest, labels_of
from blip.storage import StoreError, open_store

MANAGER = "blip.internal/pipeline"
RUNTIME = "blip-torch-a100"
"""The ClusterTrainingRuntime unless another is asked for."""
GRACE_SECONDS = 120
"""What a pod has after SIGTERM; the launcher in it lets its workers save for a little less."""


class TrainJobConfig(JobConfig):
    nodes: int = Field(ge=1)
    processes: int = Field(ge=1)
    """Processes on every node: one for each GPU."""
    module: str = "blip.cli"
    """The module that every process runs; it reads `/scratch/in/NAME` and writes `/scratch/out/NAME`."""
    handover: str = Field(pattern=r"^s3://")
    """The URI under which inputs and outputs pass through the store that the nodes share."""
    runtime: str = RUNTIME
    """The ClusterTrainingRuntime: what the platform decides, restarts, scratch space and security among it."""


def render(cfg: TrainJobConfig, owner: Manifest | None = None) -> Manifest:
    """The TrainJob: one pod a node, joined by torchrun, started again as a whole when a node is lost.

    With a queue it begins suspended, and Kueue lets it go when all its nodes fit.
    """
    threads = max(1, int(float(cfg.cpu)) // cfg.processes) if not cfg.cpu.endswith("m") else 1
    launch = ["python", "-m", "blip.launch.node", cfg.handover, "--max-restarts=0", "-m", cfg.module]
    pod = {**cfg.placement(), "terminationGracePeriodSeconds": GRACE_SECONDS}
    patch = {"name": "node", "template": {"spec": {"template": {"metadata": {"labels": labels_of("trainer")}, "spec": pod}}}}
    spec: Manifest = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": cfg.runtime},
        **cfg.deadline(),
        "trainer": {
            "image": cfg.image,
            "numNodes": cfg.nodes,
            "numProcPerNode": cfg.processes,
            "command": launch,
            "args": list(cfg.args),
            "resourcesPerNode": cfg.resources(),
            "env": [{"name": "OMP_NUM_THREADS", "value": str(threads)}, *cfg.environment()],
        },
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patch]}}}}],
    }
    if cfg.queue:
        spec["suspend"] = True
    kind = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
    return {**kind, "metadata": cfg.metadata(spec, "trainer", owner), "spec": spec}


def run(cfg: TrainJobConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Hands the inputs' folders over, submits the job or attaches to it, follows it to its end, and fetches the outputs' folders.

    The job's name gets a fingerprint of what it is to do and for whom, so that another attempt of the same step finds it, and nobody else
    does. What passed through the store is deleted at the end. Raises ConfigError when a process ended with exit code 42, JobError when
    the job failed otherwise, and StoreError when the job left something else than the outputs.
    """
    from blip.launch import submission
    from blip.launch.kubernetes import Cluster

    cluster = Cluster(cfg.namespace)
    owner = cluster.owner()
    name = f"{cfg.name[:29]}-{fingerprint(inputs, *cfg.args, owner['uid'] if owner else '')}"
    store = open_store(cfg.handover).join(name)
    job = render(cfg.model_copy(update={"name": name, "handover": store.uri}), owner)
    if not store.exists(f"out/{INDEX}"):
        send(inputs, store.join("in"))
        submission.forget_finished(cluster, job)  # its outputs were fetched and deleted, and then this step was lost
        submission.run(cluster, job)

    def place(folder: str) -> Path:
        if folder not in outputs:
            raise StoreError(f"{store.uri}/out holds {folder!r}, and the job was to make {', '.join(outputs)}")
        return outputs[folder]

    receive(store.join("out"), place)
    remove(store)
