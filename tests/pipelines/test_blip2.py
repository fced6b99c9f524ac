"""The pipelines of BLIP-2 as Kubeflow Pipelines takes them."""

import pytest
import yaml
from kfp import compiler

from pipelines import lint
from pipelines.blip2 import blip2
from pipelines.blip2_capfilt import blip2_capfilt
from pipelines.parameters import steps

PIPELINES = {"blip2": blip2, "blip2_capfilt": blip2_capfilt}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns the compiled pipelines by name."""
    found = {}
    for name, pipeline in PIPELINES.items():
        path = tmp_path_factory.mktemp("build") / f"{name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        found[name] = path.read_text(encoding="utf-8")
    return found


def spec_of(text: str) -> dict:
    spec, _ = yaml.safe_load_all(text)
    return spec


def tasks_of(spec: dict) -> dict[str, dict]:
    """Returns the compiled tasks by display name."""
    return {task["taskInfo"]["name"]: task for task in spec["root"]["dag"]["tasks"].values()}


def edges(spec: dict) -> dict[tuple[str, str], str]:
    """Returns the step whose output a step takes, by its name and the role."""
    shown = {key: task["taskInfo"]["name"] for key, task in spec["root"]["dag"]["tasks"].items()}
    return {
        (name, role): shown[given["taskOutputParameter"]["producerTask"]]
        for name, task in tasks_of(spec).items()
        for role, given in task["inputs"]["parameters"].items()
        if given.get("taskOutputParameter", {}).get("outputParameterKey") == "Output"
    }


def test_the_edges_are_those_of_the_paper(texts):
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
    assert edges(spec_of(texts["blip2"])) == expected


def test_selected_texts_and_those_of_the_web_go_the_same_way(texts):
    expected = {("capfilt", role): role for role in ("captioner", "filter")}
    expected |= {("capfilt", "data"): "ingest", ("select", "scored"): "capfilt"}
    for end, data in (("", "select"), ("-web", "ingest")):
        expected |= {(f"features{end}", "data"): data, (f"features{end}", "frozen"): "frozen"}
        expected |= {(f"stage1{end}", "data"): f"features{end}", (f"stage1{end}", "frozen"): "frozen"}
        for kind in ("opt", "t5"):
            step, judge = f"stage2-{kind}{end}", f"evaluate-{kind}{end}"
            expected |= {(step, "data"): data, (step, "frozen"): "frozen", (step, "init"): f"stage1{end}"}
            expected |= {(judge, "data"): "ingest", (judge, "model"): step}
            expected |= {(f"register-{kind}", "before" if end else "after"): judge}
    for kind in ("opt", "t5"):
        expected |= {(f"register-{kind}", "model"): f"stage2-{kind}", ("report", kind): f"register-{kind}"}
    assert edges(spec_of(texts["blip2_capfilt"])) == expected


def test_a_model_that_is_fetched_is_looked_for_again_each_time_and_all_else_is_cached(texts):
    cached = {name: task["cachingOptions"] for name, task in tasks_of(spec_of(texts["blip2_capfilt"])).items()}
    assert {name for name, options in cached.items() if not options} == {"plan", "captioner", "filter"}


def test_with_and_without_the_first_stage_differ_in_it_alone(texts):
    tasks = tasks_of(spec_of(texts["blip2"]))
    for kind in ("opt", "t5"):
        joined, alone = (
            dict(tasks[name]["inputs"]["parameters"]) for name in (f"stage2-{kind}", f"stage2-{kind}-alone")
        )
        assert joined.pop("init")
        assert joined == alone


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_each_step_takes_the_settings_of_its_stage(texts, pipeline):
    stages = {
        "features": "blip2_stage1",
        "stage1": "blip2_stage1",
        "stage2-opt": "blip2_stage2",
        "stage2-t5": "blip2_stage2_t5",
    }
    for name, task in tasks_of(spec_of(texts[pipeline])).items():
        if name in ("plan", "captioner", "filter"):
            continue
        stage = stages.get(name.removesuffix("-alone").removesuffix("-web")) or name.partition("-")[0]
        found = task["inputs"]["parameters"]["settings"]["taskOutputParameter"]
        assert found == {"producerTask": "plan", "outputParameterKey": stage}, name


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_docstring_numbers_every_step_after_those_it_needs(texts, pipeline):
    spec = spec_of(texts[pipeline])
    tasks, numbers = tasks_of(spec), {step.name: step.number for step in steps(PIPELINES[pipeline])}
    assert sorted(numbers.values()) == list(range(1, len(tasks) + 1))
    shown = {key: task["taskInfo"]["name"] for key, task in spec["root"]["dag"]["tasks"].items()}
    assert all(
        numbers[shown[needed]] < numbers[name]
        for name, task in tasks.items()
        for needed in task.get("dependentTasks", [])
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_lint_finds_nothing(texts, pipeline):
    assert lint.faults(texts[pipeline]) == []


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_training_and_evaluation_are_placed_on_gpus_and_every_step_is_tried_again_for_days(texts, pipeline):
    spec = spec_of(texts[pipeline])
    tasks = tasks_of(spec)
    placed = {
        name
        for name, task in tasks.items()
        if "accelerator" in spec["deploymentSpec"]["executors"][executor_of(spec, task)]["container"]["resources"]
    }
    assert placed == {name for name in tasks if name.startswith(("capfilt", "features", "stage", "evaluate"))}
    windows = [int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s")) for task in tasks.values()]
    assert min(windows) >= 14 * 24 * 3600


def executor_of(spec: dict, task: dict) -> str:
    return spec["components"][task["componentRef"]["name"]]["executorLabel"]
