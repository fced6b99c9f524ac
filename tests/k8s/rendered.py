"""The manifests as `kubectl kustomize` builds them."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("local", "gke", "eks")

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl builds the manifests")


@cache
def build(folder: str) -> list[dict]:
    made = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [thing for thing in yaml.safe_load_all(made.stdout) if thing]


def of(overlay: str, kind: str) -> dict[str, dict]:
    return {thing["metadata"]["name"]: thing for thing in build(f"overlays/{overlay}") if thing["kind"] == kind}


def secrets() -> dict[str, set[str]]:
    examples = yaml.safe_load_all((K8S / "base/secrets.example.yaml").read_text())
    return {secret["metadata"]["name"]: set(secret["stringData"]) for secret in examples}


def pods(things: list[dict]) -> Iterator[tuple[str, dict]]:
    """All templates of pods, with their object's kind and name."""
    for thing in things:
        name, spec = f"{thing['kind']} {thing['metadata']['name']}", thing.get("spec", {})
        match thing["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                yield name, spec["template"]
            case "CronJob":
                yield name, spec["jobTemplate"]["spec"]["template"]
            case "ClusterTrainingRuntime":
                for job in spec["template"]["spec"]["replicatedJobs"]:
                    yield name, job["template"]["spec"]["template"]


def containers(pod: dict) -> list[dict]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
