"""A workflow as Kubeflow Pipelines makes it of a compiled pipeline: its steps, their retries, and their pods."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]
WORKFLOWS = Path(__file__).parent / "workflows"
MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""The key by which Kubernetes merges the items of a list."""


@dataclass(frozen=True)
class WorkflowStep:
    """A step of a workflow: its task and executor in the pipeline, and what the workflow makes of them."""

    name: str
    task: Tree
    container: Tree
    placement: Tree
    retries: Tree
    pod: Tree


def golden(pipeline: str) -> Tree:
    """Returns the recorded workflow of a pipeline, and below `pods` the patches of its pods by component."""
    return yaml.safe_load((WORKFLOWS / f"{pipeline}.yaml").read_text(encoding="utf-8"))


def steps(recorded: Tree) -> Iterator[WorkflowStep]:
    """Yields the steps of a recorded workflow."""
    spec = recorded["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    known = {f"workflow.parameters.{p['name']}": p["value"] for p in spec["arguments"]["parameters"]}
    tasks = {task["name"]: task for template in templates.values() for task in template.get("dag", {}).get("tasks", [])}
    for name, driver in tasks.items():
        if driver["template"] != "system-container-driver":
            continue
        given = {key: known.get(value[2:-2], value) for key, value in arguments(driver).items()}
        task = json.loads(given["task"])
        executor = tasks[name.removesuffix("-driver")]
        inner = templates[executor["template"]]["dag"]["tasks"][0]["template"]
        component = task["componentRef"]["name"]
        yield WorkflowStep(
            name=task["taskInfo"]["name"],
            task=task,
            container=json.loads(given["container"]),
            placement=json.loads(given["kubernetes-config"]),
            retries=filled(templates[inner]["retryStrategy"], arguments(executor)),
            pod=merged(pod_of(templates[inner], spec), recorded["pods"][component]),
        )


def arguments(task: Tree) -> dict[str, str]:
    return {parameter["name"]: parameter["value"] for parameter in task["arguments"]["parameters"]}


def filled(tree: Any, given: dict[str, str]) -> Any:
    """Returns a template's fields with its inputs in place of their references."""
    if isinstance(tree, dict):
        return {key: filled(value, given) for key, value in tree.items()}
    return re.sub(r"\{\{inputs\.parameters\.([\w-]+)\}\}", lambda found: given[found[1]], str(tree))


def pod_of(template: Tree, spec: Tree) -> Tree:
    """Returns the pod of a template, without the containers that the workflow controller adds."""
    return {
        # a template's own context takes the place of the workflow's
        "securityContext": template.get("securityContext") or spec.get("securityContext", {}),
        "initContainers": template.get("initContainers", []),
        "containers": [{**template["container"], "name": "main"}],
        "volumes": template.get("volumes", []),
    }


def merged(tree: Any, patch: Any, key: str = "") -> Any:
    """Returns a part of a pod with a strategic merge patch applied."""
    if isinstance(tree, dict) and isinstance(patch, dict):
        return {
            **tree,
            **{name: merged(tree[name], patch[name], name) if name in tree else patch[name] for name in patch},
        }
    if isinstance(tree, list) and isinstance(patch, list) and key in MERGE_KEYS:
        identity = MERGE_KEYS[key]
        items = {item[identity]: item for item in tree}
        for item in patch:
            items[item[identity]] = merged(items.get(item[identity], {}), item)
        return list(items.values())
    return patch
