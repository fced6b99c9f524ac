"""The workflows that Kubeflow Pipelines makes of our pipelines, as recorded: see workflows/README.md."""

import json
import re
from pathlib import Path

import pytest
import yaml
from argo import WORKFLOWS, WorkflowStep, golden, steps
from kfp import compiler
from pod_security import violations
from record_workflow import recording

from pipelines.__main__ import PIPELINES, find_pipeline
from pipelines.placement import IMAGE_VARIABLE, RETRY_WINDOW, USER

RECORDED = {
    "bootstrap": {"pretrain", "captioner", "filter", "capfilt", "pretrain-again", "evaluate-before", "evaluate-after"},
    "retrain": {"pretrain", "captioner", "filter", "capfilt", "pretrain-again", "evaluate-before", "evaluate-after"},
    "blip2": {
        *("features", "stage1", "stage2-opt", "stage2-opt-alone", "stage2-t5", "stage2-t5-alone"),
        *("evaluate-opt", "evaluate-opt-alone", "evaluate-t5", "evaluate-t5-alone"),
    },
    "blip2_capfilt": {
        *("capfilt", "features", "features-web", "stage1", "stage1-web"),
        *(f"{step}-{kind}{end}" for step in ("stage2", "evaluate") for kind in ("opt", "t5") for end in ("", "-web")),
    },
    "downstream": {"fine-tune", "judge"},
}
"""The pipelines whose workflows are recorded, and their steps that train or predict."""
RENEW = f"renew it as {WORKFLOWS / 'README.md'} says"
PLATFORM = Path(__file__).parents[2] / "k8s/platform"
DAY = 24 * 3600


def test_every_pipeline_is_recorded():
    assert set(RECORDED) == set(PIPELINES)


def test_a_recording_has_what_drivers_made_and_no_sources():
    recorded = golden("bootstrap")
    patch = recorded["pods"]["comp-plan"]
    container = {**patch["containers"][0], "command": ["/kfp-launcher/launch"], "args": ["--x"]}
    made = {"name": "pod-spec-patch", "value": json.dumps({"containers": [container]})}
    status = {"nodes": {"n": {"displayName": "plan-driver", "outputs": {"parameters": [made]}}}}
    again = recording({"spec": golden("bootstrap")["spec"], "status": status}, {**recorded["pods"], "comp-plan": {}})
    assert again["pods"] == {**recorded["pods"], "comp-plan": patch}
    sources = [p["value"] for p in again["spec"]["arguments"]["parameters"] if p["name"].startswith("implementations-")]
    assert not any("executor_main" in source for source in sources)


def gpu_steps(pipeline: str) -> list[WorkflowStep]:
    return [step for step in steps(golden(pipeline)) if "accelerator" in step.container.get("resources", {})]


@pytest.mark.parametrize("pipeline", RECORDED)
def test_the_recorded_workflow_is_of_the_pipeline_as_it_is(pipeline, tmp_path):
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(find_pipeline(pipeline), str(path))
    spec, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    expected = {}
    for group in [spec["root"], *spec["components"].values()]:
        for task in group.get("dag", {}).get("tasks", {}).values():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if label:
                container = spec["deploymentSpec"]["executors"][label]["container"]
                expected[task["taskInfo"]["name"]] = comparable(task, container, executors[label])
    found = {step.name: comparable(step.task, step.container, step.placement) for step in steps(golden(pipeline))}
    assert found == expected, RENEW


def comparable(task: dict, container: dict, placement: dict) -> dict:
    """What decides about a step's pod and its place among the others; its sources and its image do not."""
    return {
        "after": sorted(task.get("dependentTasks", [])),
        "inputs": task["inputs"],
        "cached": task.get("cachingOptions", {}),
        "retries": {key: float(str(value).removesuffix("s")) for key, value in task["retryPolicy"].items()},
        "env": [variable for variable in container.get("env", []) if variable["name"] != IMAGE_VARIABLE],
        "resources": container.get("resources", {}),
        "placement": placement,
    }


@pytest.mark.parametrize("pipeline", RECORDED)
def test_a_namespace_that_enforces_the_restricted_standard_takes_every_step(pipeline):
    found = list(steps(golden(pipeline)))
    assert RECORDED[pipeline] < {step.name for step in found}
    for step in found:
        assert violations(step.pod) == [], step.name
        (main,) = step.pod["containers"]
        assert main["securityContext"]["runAsUser"] == USER, step.name


@pytest.mark.parametrize("pipeline", RECORDED)
def test_the_standard_refuses_steps_that_name_no_user(pipeline):
    recorded = golden(pipeline)
    for pod in recorded["pods"].values():
        del pod["containers"][0]["securityContext"]
    assert all("container main: runAsNonRoot is not true" in violations(step.pod) for step in steps(recorded))


@pytest.mark.parametrize("pipeline", RECORDED)
def test_attempts_are_neither_ended_nor_refused_within_a_month(pipeline):
    for step in steps(golden(pipeline)):
        assert step.retries["limit"] == "3", step.name
        window = float(step.retries["backoff"]["maxDuration"])
        assert window == float(RETRY_WINDOW.removesuffix("s")), step.name
        assert window >= 30 * DAY, step.name


@pytest.mark.parametrize("pipeline", RECORDED)
def test_a_step_says_nothing_of_when_to_retry_so_that_the_platform_does(pipeline):
    """The controller merges its defaults below each template's own fields."""
    controller = yaml.safe_load((PLATFORM / "workflow-controller.yaml").read_text(encoding="utf-8"))
    defaults = yaml.safe_load(controller["data"]["workflowDefaults"])["spec"]["templateDefaults"]["retryStrategy"]
    for step in steps(golden(pipeline)):
        effective = {**defaults, **step.retries}
        assert effective["retryPolicy"] == "Always", step.name
        assert effective["expression"] == defaults["expression"], step.name
        assert effective["limit"] == "3", step.name


@pytest.mark.parametrize("pipeline", RECORDED)
def test_gpu_steps_get_their_resources_nodes_and_volumes(pipeline):
    found = gpu_steps(pipeline)
    assert {step.name for step in found} == RECORDED[pipeline]
    for step in found:
        (main,) = step.pod["containers"]
        limits, volumes = main["resources"]["limits"], {volume["name"]: volume for volume in step.pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in main["volumeMounts"]}
        assert limits["nvidia.com/gpu"] == "1", step.name
        assert re.fullmatch(r"\d+Gi", limits["memory"]), step.name
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory", step.name
        assert "emptyDir" in volumes[mounts["/scratch"]], step.name
        assert step.pod["nodeSelector"], step.name
        assert step.pod["tolerations"], step.name


@pytest.mark.parametrize("pipeline", RECORDED)
def test_credentials_arrive_by_reference_and_each_step_is_named(pipeline):
    for step in steps(golden(pipeline)):
        (main,) = step.pod["containers"]
        env = {variable["name"]: variable for variable in main["env"]}
        assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "blip", step.name
        assert env["MLFLOW_RUN_NAME"]["value"] == step.name
        assert env["BLIP_GROUP"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['pipeline/runid']"
        assert env["KFP_POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name", step.name
