import pytest
import yaml
from drawn_graph import drawn
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
        (name, taken): shown[given["taskOutputParameter"]["producerTask"]]
        for name, task in tasks.items()
        for taken, given in task["inputs"]["parameters"].items()
        if given.get("taskOutputParameter", {}).get("outputParameterKey") == "Output"
    }
    assert edges == {
        ("pretrain", "data"): "ingest",
        ("captioner", "data"): "ingest",
        ("captioner", "init"): "pretrain",
        ("filter", "data"): "ingest",
        ("filter", "init"): "pretrain",
        ("capfilt", "data"): "ingest",
        ("capfilt", "captioner"): "captioner",
        ("capfilt", "filter"): "filter",
        ("select", "scored"): "capfilt",
        ("pretrain-again", "data"): "select",
        ("evaluate-before", "data"): "ingest",
        ("evaluate-before", "model"): "pretrain",
        ("evaluate-after", "data"): "ingest",
        ("evaluate-after", "model"): "pretrain-again",
        ("register", "model"): "pretrain-again",
        ("register", "before"): "evaluate-before",
        ("register", "after"): "evaluate-after",
        ("report", "decision"): "register",
    }
    assert set(tasks["report"]["dependentTasks"]) == {"plan", "register"}, "no arrow from every step"


@pytest.mark.parametrize(
    ("pipeline", "sizes"), [(bootstrap, [24]), (retrain, [3, 1, 24])], ids=["bootstrap", "retrain"]
)
def test_a_person_can_read_the_graph_on_one_screen(pipeline, sizes, tmp_path):
    compiler.Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
    spec, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text(encoding="utf-8"))
    screens = drawn(spec)
    assert [len(screen.nodes) for screen in screens] == sizes
    assert all(len(screen.nodes) < 25 for screen in screens)
    for screen in screens:
        artifacts = [node for node in screen.nodes if isinstance(node, tuple)]
        assert not {source for source, _ in screen.edges} & set(artifacts), (
            "a page hangs on its step, and nothing on it"
        )
        steps = {name for name in screen.nodes if isinstance(name, str)} - {"new shards", "bootstrap", "plan"}
        pages = {task: output for task, output in artifacts if output != "metrics"}
        assert sorted(pages) == sorted(steps), "one page a step"
        assert all(output.endswith("_page") for output in pages.values()), "a node is labelled by its output's name"
        assert len(set(pages.values())) >= len(pages) - 4, "and tells what is on the page"


def test_the_report_alone_has_figures_to_compare_runs_by(text):
    spec, _ = yaml.safe_load_all(text)
    (screen,) = drawn(spec)
    shown = [node for node in screen.nodes if isinstance(node, tuple) and not node[1].endswith("_page")]
    assert shown == [("report", "metrics")]


def test_both_pre_trainings_differ_in_their_data_alone(tasks):
    first, again = (tasks[name]["inputs"]["parameters"] for name in ("pretrain", "pretrain-again"))
    assert {key for key in first.keys() | again.keys() if first.get(key) != again.get(key)} == {"data"}


def test_a_form_asks_for_few_things_and_one_has_no_default(text):
    spec, _ = yaml.safe_load_all(text)
    asked = spec["root"]["inputDefinitions"]["parameters"]
    assert next(iter(bootstrap.component_spec.inputs)) == "store"
    assert {name for name, one in asked.items() if not one.get("isOptional")} == {"store"}
    assert asked.keys() == {"store", "source", "preset", "overrides", "name", "placement", "max_gpu_hours"}


def test_what_a_run_may_use_is_no_input_of_its_steps_beyond_what_the_driver_needs(tasks):
    given = {name for task in tasks.values() for name in task["inputs"]["parameters"]}
    for_the_pod = {"accelerator_count", "accelerator_type", "cpu_limit", "memory_limit"}
    for_the_pod |= {f"pipelinechannel--plan-{name}" for name in ("gpus", "gpu_type", "cpu", "memory")}
    ours = {"pipeline", "stage", "preset", "settings", "store", "source", "name", "decision", "scored"}
    ours |= {"data", "init", "model", "captioner", "filter", "before", "after"}
    assert given - for_the_pod - ours == {"overrides", "placement", "max_gpu_hours"}
    users = {
        name for name, task in tasks.items() if {"placement", "max_gpu_hours"} & task["inputs"]["parameters"].keys()
    }
    assert users == {"plan"}, "more memory or a higher bound must not make finished steps run again"


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
        keys = {entry["configMapKey"]: entry["envVar"] for entry in one["configMapAsEnv"][0]["keyToEnv"]}
        assert (keys["placements"], keys["queue"], keys["mlflow-ui"]) == (
            "BLIP_PLACEMENTS",
            "BLIP_QUEUE",
            "BLIP_MLFLOW_UI",
        )
    planned = {"producerTask": "plan", "outputParameterKey": "pool"}
    assert placed["exec-train"]["nodeSelector"] == {"nodeSelectorJson": {"taskOutputParameter": planned}}
    resources = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert resources["resourceMemoryLimit"] == "{{$.inputs.parameters['pipelinechannel--plan-memory']}}"
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
