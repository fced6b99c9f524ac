"""`kubectl get workflow NAME -o yaml | python record_workflow.py PIPELINE` renews a recording: workflows/README.md."""

import json
import sys
from typing import Any

import yaml
from argo import WORKFLOWS, Tree, arguments

HEADER = """\
# What Kubeflow Pipelines 2.17.0 makes of the pipeline {pipeline} with its defaults: the Argo workflow of its compiler,
# and the patches by which its driver completes the pod of each step. README.md says how to renew it.
"""


def recording(workflow: Tree, before: Tree) -> Tree:
    """Returns what is kept of a workflow; steps that it did not reach keep their pods of the recording before."""
    spec = workflow["spec"]
    for parameter in spec["arguments"]["parameters"]:
        if parameter["name"].startswith("implementations-"):
            parameter["value"] = json.dumps(without_sources(json.loads(parameter["value"])))
    return {"spec": spec, "pods": dict(sorted({**before, **patches(workflow)}.items()))}


def without_sources(container: Tree) -> Tree:
    return {key: value for key, value in container.items() if key not in ("command", "args")}


def patches(workflow: Tree) -> dict[str, Any]:
    """Returns the patch of each component's pod that a driver of the workflow has made."""
    components = {}
    for template in workflow["spec"]["templates"]:
        for task in template.get("dag", {}).get("tasks", []):
            if task["template"] == "system-container-driver":
                components[task["name"]] = json.loads(arguments(task)["task"])["componentRef"]["name"]
    found = {}
    for node in workflow.get("status", {}).get("nodes", {}).values():
        given = {output["name"]: output["value"] for output in node.get("outputs", {}).get("parameters", [])}
        if node["displayName"] in components and given.get("pod-spec-patch"):
            patch = json.loads(given["pod-spec-patch"])
            patch["containers"] = [without_sources(container) for container in patch["containers"]]
            found[components[node["displayName"]]] = patch
    return found


if __name__ == "__main__":
    pipeline = sys.argv[1]
    path = WORKFLOWS / f"{pipeline}.yaml"
    before = yaml.safe_load(path.read_text(encoding="utf-8"))["pods"] if path.exists() else {}
    kept = recording(yaml.safe_load(sys.stdin), before)
    path.write_text(
        HEADER.format(pipeline=pipeline) + yaml.safe_dump(kept, sort_keys=False, width=200), encoding="utf-8"
    )
