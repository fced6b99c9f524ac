"""Placement of a step's work: in its own pod, or in jobs on the cluster."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from blip.config import validate
from blip.launch.job import JobConfig, PodConfig
from blip.launch.node import SCRATCH
from blip.launch.respawn import argv
from blip.launch.trainjob import RUNTIME, TrainJobConfig, run_trainjob
from blip.launch.workers import WorkersConfig, workers_on_cluster
from blip.results import Result
from blip.workers.progress import Workers

FIGURES = "figures.json"
INHERITED = ("BLIP_GROUP", "MLFLOW_RUN_NAME")
"""Environment variables that a step's jobs inherit: the parent run, and the run's name in MLflow."""
IMAGE = "BLIP_IMAGE"
"""Environment variable with a step's image, in which its jobs run, too."""
WATCHING_POD = {"gpus": 0, "cpu": "4", "memory": "16Gi", "pool": {}, "tolerations": ()}
"""The own pod of a step whose work is done in jobs."""

J = TypeVar("J", bound=JobConfig)
R = TypeVar("R", bound=Result)


class Placement(PodConfig):
    """The pods that work for a run: the steps' own pods, or with `nodes` or `workers` those of jobs."""

    image: str = ""
    """The image of jobs; empty for that of the step."""
    nodes: int | None = Field(default=None, ge=1)
    """Number of nodes of each training; 1 if only `workers` is given. None is the step's own pod."""
    workers: int | None = Field(default=None, ge=1)
    """Number of pods that caption, filter and evaluate; as many as `nodes` if only that is given."""
    runtime: str = RUNTIME
    """ClusterTrainingRuntime for training in jobs."""

    @property
    def in_jobs(self) -> bool:
        """Whether the work is done in jobs, which a step's own pod starts and watches."""
        return self.nodes is not None or self.workers is not None

    def own_pod(self) -> "Placement":
        """Returns the resources and nodes of a step's own pod."""
        return self.model_copy(update=WATCHING_POD) if self.in_jobs else self

    def requests(self) -> tuple[str, str, str, str, dict[str, str], list[dict[str, Any]]]:
        """Returns what a step's own pod asks for, as a plan hands it to the driver: GPUs, their resource name, CPUs,
        memory, node labels and tolerations. An integer would silently be no GPU."""
        pod = self.own_pod()
        return str(pod.gpus), pod.gpu_type, pod.cpu, pod.memory, pod.pool, list(pod.tolerations)

    def job(self, kind: type[J], **settings: Any) -> J:
        """Returns the configuration of a job with these pods. Raises ConfigError."""
        shared = {key: getattr(self, key) for key in kind.model_fields if key in Placement.model_fields}
        shared["image"] = self.image or os.environ.get(IMAGE, "")
        shared["env"] = {name: os.environ[name] for name in INHERITED if os.environ.get(name)} | self.env
        counts = {"nodes": self.nodes or 1, "workers": self.workers or self.nodes or 1}
        shared |= {key: count for key, count in counts.items() if key in shared}
        return validate(kind, {**shared, **settings}, "placement")


def on_nodes(
    placed: Placement,
    name: str,
    verb: Sequence[str],
    result: type[R],
    *,
    store: str,
    inputs: Mapping[str, str | Path],
    out: str | Path,
) -> R:
    """Runs a verb of the command line on the nodes of a TrainJob and returns its result.

    `inputs` are folders by the verb's option; the verb's `--out` is copied to the folder `out`.
    """
    made = f"{SCRATCH}/out/made"
    options = {f"--{option}": f"{SCRATCH}/in/{option}" for option in inputs}
    # the verb creates the folder before it writes the figures
    args = [*verb, *argv({**options, "--out": made, "--figures": f"{made}/{FIGURES}"}, ())]
    handover = f"{store.rstrip('/')}/handover"
    cfg = placed.job(TrainJobConfig, name=name, args=args, processes=max(1, placed.gpus), handover=handover)
    run_trainjob(cfg, {option: Path(folder) for option, folder in inputs.items()}, {"made": Path(out)})
    figures = Path(out, FIGURES)
    found = result.load(figures)
    figures.unlink()
    return found


def workers(placed: Placement, name: str) -> Workers | None:
    """Returns the cluster workers of a step, or None if its own pod processes the shards."""
    return workers_on_cluster(placed.job(WorkersConfig, name=name)) if placed.in_jobs else None
