"""The pipeline of BLIP-2 as Kubeflow Pipelines takes it."""

import pytest
import yaml
from kfp import compiler

from pipelines import lint
from pipelines.blip2 import blip2
from pipelines.parameters import steps


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("build") / "blip2.yaml"
    compiler.Compiler().compile(blip2, str(path))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(text) -> dict:
    """Returns the compiled tasks by display name."""
    spec, _ = yaml.safe_load_all(text)
    return {task["taskInfo"]["name"]: task for task in spec["root"]["dag"]["tasks"].values()}


def test_the_edges_are_those_of_the_paper(text, tasks):
    spec, _ = yaml.safe_load_all(text)
    shown = {key: task["taskInfo"]["name"] for key, task in spec["root"]["dag"]["tasks"].items()}
    edges = {
        (name, role): shown[given["taskOutputParameter"]["producerTask"]]
        for name, task in tasks.items()
        for role, given in task["inputs"]["parameters"].items()
        if given.get("taskOutputParameter", {}).get("outputParameterKey") == "Output"
    }
    expected = {("features", "data"): "ingest", ("features", "frozen"): "frozen"}
    expected |= {("stage1", "data"): "features", ("stage1", "frozen"): "frozen"}
    for kind in ("opt", "t5"):
        for step in (f"stage2-{kind}", f"stage2-{kind}-alone"):
            expected |= {(step, "data"): "ingest", (step, "frozen"): "frozen"}
            expected |= {(f"evaluate{step[6:]}", "data"): "ingest", (f"evaluate{step[6:]}", "model"): step}
        expected |= {
            (f"stage2-{kind}", "init"): "stage1",
            (f"register-{kind}", "model"): f"stage2-{kind}",
            (f"register-{kind}", "before"): f"evaluate-{kind}-alone",
            (f"register-{kind}", "after"): f"evaluate-{kind}",
            ("report", kind): f"register-{kind}",
        }
    assert edges == expected


def test_with_and_without_the_first_stage_differ_in_it_alone(tasks):
    for kind in ("opt", "t5"):
        joined, alone = (
            dict(tasks[name]["inputs"]["parameters"]) for name in (f"stage2-{kind}", f"stage2-{kind}-alone")
        )
        assert joined.pop("init")
        assert joined == alone


def test_each_step_takes_the_settings_of_its_stage(tasks):
    stages = {
        "features": "blip2_stage1",
        "stage1": "blip2_stage1",
        "stage2-opt": "blip2_stage2",
        "stage2-t5": "blip2_stage2_t5",
    }
    for name, task in tasks.items():
        if name == "plan":
            continue
        stage = stages.get(name.removesuffix("-alone")) or name.partition("-")[0]
        found = task["inputs"]["parameters"]["settings"]["taskOutputParameter"]
        assert found == {"producerTask": "plan-blip2", "outputParameterKey": stage}, name


def test_the_docstring_numbers_every_step_after_those_it_needs(text, tasks):
    numbers = {step.name: step.number for step in steps(blip2)}
    assert sorted(numbers.values()) == list(range(1, len(tasks) + 1))
    spec, _ = yaml.safe_load_all(text)
    shown = {key: task["taskInfo"]["name"] for key, task in spec["root"]["dag"]["tasks"].items()}
    assert all(
        numbers[shown[needed]] < numbers[name]
        for name, task in tasks.items()
        for needed in task.get("dependentTasks", [])
    )


def test_the_lint_finds_nothing(text):
    assert lint.faults(text) == []


def test_training_and_evaluation_are_placed_on_gpus_and_every_step_is_tried_again_for_days(text, tasks):
    spec, _ = yaml.safe_load_all(text)
    placed = {
        name
        for name, task in tasks.items()
        if "accelerator" in spec["deploymentSpec"]["executors"][executor_of(spec, task)]["container"]["resources"]
    }
    assert placed == {name for name in tasks if name.startswith(("features", "stage", "evaluate"))}
    windows = [int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s")) for task in tasks.values()]
    assert min(windows) >= 14 * 24 * 3600


def executor_of(spec: dict, task: dict) -> str:
    return spec["components"][task["componentRef"]["name"]]["executorLabel"]
