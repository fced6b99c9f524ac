"""Where a step's work is done: in this process's own machine, or by nodes of the cluster that the step asks for."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.config import set_value, validate
from blip.launch.node import SCRATCH
from blip.launch.respawn import words
from blip.launch.trainjob import TrainJobConfig
from blip.launch.trainjob import run as run_job
from blip.launch.workers import WorkersConfig, on_cluster
from blip.workers.progress import Workers

FIGURES = "figures.json"
TOLD = ("BLIP_GROUP", "MLFLOW_RUN_NAME")
"""What a step's jobs are told of it: the run it belongs to, and its name there."""


def placement(jobs: Sequence[str], image: str) -> dict[str, Any]:
    """What `key=value` texts say of the jobs that a step asks for, such as `nodes=4`, `workers=16`, `gpus=8`, `pool={label: value}`."""
    found: dict[str, Any] = {"image": image}
    if env := {name: os.environ[name] for name in TOLD if os.environ.get(name)}:
        found["env"] = env
    for text in jobs:
        set_value(found, text)
    return found


def alone(placement: Mapping[str, Any]) -> bool:
    return int(placement.get("nodes", 1)) <= 1


def on_nodes(
    placement: Mapping[str, Any], name: str, verb: Sequence[str], store: str, inputs: Mapping[str, str], out: str
) -> dict[str, Any]:
    """Runs a verb over several nodes: its inputs are folders by option, its `--out` becomes the folder `out`. Gives its figures.

    The placement says what a TrainJob needs to know: `image`, and for each node `gpus`, `gpu_type`, `cpu`, `memory`, `pool` and
    `tolerations`, numbers also as text.
    """
    made = f"{SCRATCH}/out/made"
    given = {f"--{option}": f"{SCRATCH}/in/{option}" for option in inputs}
    told = [*verb, *words({**given, "--out": made, "--figures": f"{made}/{FIGURES}"}, ())]  # the figures' folder is there by then
    job = {"processes": max(1, int(placement.get("gpus", 1))), "handover": f"{store.rstrip('/')}/handover"}
    job |= {**without("workers", placement), "name": name, "args": told}
    run_job(validate(TrainJobConfig, job, "the placement"), {option: Path(at) for option, at in inputs.items()}, {"made": Path(out)})
    figures = Path(out, FIGURES)
    found = json.loads(figures.read_text())
    figures.unlink()
    return found


def workers(placement: Mapping[str, Any], name: str) -> Workers | None:
    """The workers of a step, which their job is named after: pods where the placement asks for any, else None for this machine's."""
    if "workers" not in placement:
        return None
    return on_cluster(validate(WorkersConfig, {**without("nodes", placement), "name": name}, "the placement"))


def without(name: str, placement: Mapping[str, Any]) -> dict[str, Any]:
    """A placement may be one for all steps; each kind of job knows its own number alone."""
    return {key: value for key, value in placement.items() if key != name}
