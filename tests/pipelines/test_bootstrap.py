import pytest
import yaml
from kfp import compiler
from step_pods import refusals, step_pod

from pipelines import lint
from pipelines.bootstrap import bootstrap
from pipelines.parameters import steps
from pipelines.retrain import retrain


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("build") / "bootstrap.yaml"
    compiler.Compiler().compile(bootstrap, str(path))
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
        (name, taken): (shown[source["producerTask"]], source["outputArtifactKey"])
        for name, task in tasks.items()
        for taken, given in task["inputs"].get("artifacts", {}).items()
        for source in [given["taskOutputArtifact"]]
        if name != "report"
    }
    assert edges == {
        ("pretrain", "data"): ("ingest", "data"),
        ("captioner", "data"): ("ingest", "data"),
        ("captioner", "init"): ("pretrain", "model"),
        ("filter", "data"): ("ingest", "data"),
        ("filter", "init"): ("pretrain", "model"),
        ("capfilt", "data"): ("ingest", "data"),
        ("capfilt", "captioner"): ("captioner", "model"),
        ("capfilt", "filter"): ("filter", "model"),
        ("select", "scored"): ("capfilt", "scored"),
        ("pretrain-again", "data"): ("select", "kept"),
        ("evaluate-before", "data"): ("ingest", "data"),
        ("evaluate-before", "model"): ("pretrain", "model"),
        ("evaluate-after", "data"): ("ingest", "data"),
        ("evaluate-after", "model"): ("pretrain-again", "model"),
        ("register", "model"): ("pretrain-again", "model"),
        ("register", "before"): ("evaluate-before", "metrics"),
        ("register", "after"): ("evaluate-after", "metrics"),
    }
    assert set(tasks["report"]["dependentTasks"]) == set(shown) - {"report"}


def test_both_pre_trainings_differ_in_their_data_alone(tasks):
    first, again = tasks["pretrain"]["inputs"], tasks["pretrain-again"]["inputs"]
    assert first["parameters"] == again["parameters"]
    assert set(first["artifacts"]) == set(again["artifacts"]) == {"data"}


def test_each_step_takes_the_settings_that_the_plan_found_for_it_and_the_plan_alone_is_never_cached(tasks):
    stages = {"pretrain-again": "pretrain", "evaluate-before": "evaluate", "evaluate-after": "evaluate"}
    given = {name: task["inputs"]["parameters"].get("settings") for name, task in tasks.items()}
    assert given.pop("plan") is None
    assert {name: one["taskOutputParameter"] for name, one in given.items()} == {
        name: {"producerTask": "plan", "outputParameterKey": stages.get(name, name)} for name in given
    }
    assert [name for name, task in tasks.items() if not task["cachingOptions"].get("enableCache")] == ["plan"]


def test_no_step_is_known_by_the_codes_revision(text, tasks):
    assert not [name for name, task in tasks.items() if "revision" in task["inputs"]["parameters"]]
    spec, _ = yaml.safe_load_all(text)
    assert "revision" not in spec["root"]["inputDefinitions"]["parameters"]


def test_the_docstring_numbers_every_step_after_those_it_needs(text, tasks):
    numbers = {step.name: step.number for step in steps(bootstrap)}
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


def test_gpu_steps_are_placed_and_the_others_are_not(text):
    spec, platform = yaml.safe_load_all(text)
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    on_gpus = {
        name
        for name, one in spec["deploymentSpec"]["executors"].items()
        if "accelerator" in one["container"]["resources"]
    }
    assert {name.removeprefix("exec-").rstrip("-234") for name in on_gpus} == {"train", "capfilt", "evaluate"}
    for name, one in placed.items():
        assert ("nodeSelector" in one) == ("tolerations" in one) == (name in on_gpus)
        assert one["secretAsEnv"][0]["optional"]
    assert placed["exec-train"]["emptyDirMounts"] == [
        {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "32Gi", "volumeName": "shm"},
        {"mountPath": "/scratch", "sizeLimit": "200Gi", "volumeName": "scratch"},
    ]


@pytest.mark.parametrize("pipeline", [bootstrap, retrain], ids=["bootstrap", "retrain"])
def test_the_restricted_standard_takes_the_pod_of_every_step(pipeline, tmp_path):
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    spec, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert placed.keys() == spec["deploymentSpec"]["executors"].keys()
    assert {name: refusals(step_pod(executor)) for name, executor in placed.items()} == {name: [] for name in placed}


def test_the_standard_refuses_a_step_that_names_no_user():
    assert refusals(step_pod({})) == ["main: runAsNonRoot != true"]


def test_every_step_is_tried_again_for_days(tasks):
    windows = {name: int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s")) for name, task in tasks.items()}
    assert min(windows.values()) >= 14 * 24 * 3600
