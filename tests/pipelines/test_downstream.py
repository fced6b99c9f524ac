"""The downstream pipeline: a loop over tasks, each planned, fine-tuned, judged and registered."""

from pathlib import Path

import pytest
import yaml
from kfp import compiler

from blip.config import ConfigError
from blip.results import DownstreamResult, EvaluationResult, GateResult, TrainResult
from blip.runs.downstream import ingest_settings, plan_downstream, summarise
from blip.runs.outputs import StepOutput
from pipelines import lint
from pipelines.downstream import downstream
from pipelines.parameters import steps, values


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("build") / "downstream.yaml"
    compiler.Compiler().compile(downstream, str(path))
    return path.read_text(encoding="utf-8")


def test_it_compiles_without_faults(text: str):
    assert lint.faults(text) == []
    names = [step.name for step in steps(downstream)]
    assert names == ["plan", "fetch-model", "ingest", "fine-tune", "judge", "register", "report"]


def test_a_task_passes_through_its_steps(text: str):
    spec, _ = yaml.safe_load_all(text)
    (loop,) = (task for task in spec["root"]["dag"]["tasks"].values() if "parameterIterator" in task)
    assert loop["iteratorPolicy"] == {"parallelismLimit": 1}
    inner = spec["components"]["comp-task"]["dag"]["tasks"]
    shown = {key: task["taskInfo"]["name"] for key, task in inner.items()}
    edges = {
        (task["taskInfo"]["name"], name): shown[given["taskOutputParameter"]["producerTask"]]
        for task in inner.values()
        for name, given in task["inputs"]["parameters"].items()
        if given.get("taskOutputParameter", {}).get("outputParameterKey") == "Output"
    }
    assert edges == {
        ("fine-tune", "data"): "ingest",
        ("fine-tune", "init"): "fetch-model",
        ("judge", "data"): "ingest",
        ("judge", "model"): "fine-tune",
        ("register", "model"): "fine-tune",
        ("register", "after"): "judge",
    }


def test_tasks_are_given_as_a_list():
    assert values(downstream, ["tasks=[vqa,nlvr]", "vqa.epochs=2"]) == {
        "tasks": ["vqa", "nlvr"],
        "overrides": ["vqa.epochs=2"],
    }


def test_a_plan_has_the_settings_of_its_task_and_keys_that_follow_them():
    given = ["vqa.epochs=2", "nlvr.epochs=3", "ingest_vqa.data.world.gold=9", "evaluate.split=test"]
    plan = plan_downstream("blip", "vqa", "shapes", given)
    assert [setting for setting in plan if not setting.startswith("key.")] == [given[0], *given[2:]]
    other = plan_downstream("blip", "vqa", "shapes", ["vqa.epochs=2", "nlvr.epochs=4", *given[2:]])
    assert other == plan
    changed = plan_downstream("blip", "vqa", "shapes", ["vqa.epochs=3", *given[2:]])
    assert {s for s in changed if s.startswith("key.vqa")} != {s for s in plan if s.startswith("key.vqa")}
    assert {s for s in changed if s.startswith("key.ingest")} == {s for s in plan if s.startswith("key.ingest")}


@pytest.mark.parametrize(
    ("task", "override", "said"),
    [
        ("chess", "vqa.epochs=1", "task 'chess' is none of retrieval, captioning, vqa, nlvr, dialog"),
        ("vqa", "ingest_chess.data.type=coco", "of no task's ingestion; choices: ingest_retrieval"),
        ("vqa", "vqa.epoch=1", "did you mean epochs"),
        ("vqa", "nlvr.epochs=none", r"nlvr .*epochs"),
        ("vqa", "ingest_vqa.data.type=vqav2", r"set data\.annotations"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(task: str, override: str, said: str):
    with pytest.raises(ConfigError, match=said):
        plan_downstream("blip", task, "shapes", [override])


def test_a_tasks_own_data_take_the_place_of_the_world_of_shapes():
    assert ingest_settings("vqa", ["ingest.per_shard=5"]) == [
        "data.type=shapes_task",
        "data.task=vqa",
        "per_shard=5",
    ]
    own = ["ingest_vqa.data.type=vqav2", "ingest_nlvr.data.type=nlvr2"]
    assert ingest_settings("vqa", own) == ["data.type=vqav2"]


def test_the_report_has_the_scores_and_the_reason_of_every_task(tmp_path: Path):
    store = str(tmp_path)

    def made(stage: str, result, **inputs: str) -> str:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        return StepOutput.publish(store, stage, folder, result, inputs).uri

    decisions = []
    for task, score, passed in (("vqa", 80.0, True), ("nlvr", 50.0, False)):
        model = made(task, TrainResult(steps=1, losses={}, curves={}, seconds=10, digest=task))
        judged = EvaluationResult(split="test", scores={task: {"accuracy": score}}, seconds=5)
        after = made("evaluate", judged, model=model)
        gate = GateResult(registered=passed, reason=f"reason of {task}", seconds=1)
        decisions.append(StepOutput.load(made("register", gate, model=model, after=after)))
    result = summarise(decisions)
    assert result == DownstreamResult(
        scores={"vqa": {"accuracy": 80.0}, "nlvr": {"accuracy": 50.0}},
        registered={"vqa": True, "nlvr": False},
        reasons={"vqa": "reason of vqa", "nlvr": "reason of nlvr"},
        seconds=32,
    )
    assert result.compared()["vqa.accuracy"] == 80
    assert "nlvr: reason of nlvr" in result.notes()
