"""Placement of a step's work: in its own process, or in jobs on the cluster."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from blip.config import set_value, validate
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
QUEUE = "BLIP_QUEUE"
"""Environment variable with the name of the cluster's Kueue LocalQueue, if any."""

J = TypeVar("J", bound=JobConfig)
R = TypeVar("R", bound=Result)


class Placement(PodConfig):
    """The cluster jobs of a step; by default there are none."""

    image: str = ""
    nodes: int = Field(default=1, ge=1)
    """Number of training nodes; 1 is the step's own pod."""
    workers: int | None = Field(default=None, ge=1)
    """Number of worker pods that process shards; None is the step's own pod."""
    runtime: str = RUNTIME
    """ClusterTrainingRuntime for training on several nodes."""

    def job(self, kind: type[J], **settings: Any) -> J:
        """Returns the configuration of a job with these pods. Raises ConfigError."""
        shared = {key: getattr(self, key) for key in kind.model_fields if key in Placement.model_fields}
        return validate(kind, {**shared, **settings}, "jobs")


def placement(jobs: Sequence[str], image: str) -> Placement:
    """Parses `key=value` texts such as `nodes=4`, `workers=16`, `gpus=8`, `pool={label: value}`. Raises ConfigError.

    Without any text a step asks for no job, whatever its image. Without `queue=`, jobs use the queue named by the
    environment variable BLIP_QUEUE.
    """
    if not jobs:
        return Placement()
    values: dict[str, Any] = {"image": image, "queue": os.environ.get(QUEUE, "")}
    if env := {name: os.environ[name] for name in INHERITED if os.environ.get(name)}:
        values["env"] = env
    for text in jobs:
        set_value(values, text)
    return validate(Placement, values, "jobs")


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
    """Runs a verb of the command line on several nodes and returns its result.

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
    """Returns the cluster workers of a step, or None if this machine processes the shards."""
    if placed.workers is None:
        return None
    return workers_on_cluster(placed.job(WorkersConfig, name=name))
