"""The downstream pipeline: a loop over tasks, each planned, fine-tuned, judged and registered."""

from pathlib import Path

import pytest
import yaml
from kfp import compiler
from tiny_models import both, model_folder

from blip.config import ConfigError
from blip.results import (
    DownstreamResult,
    EvaluationResult,
    FetchResult,
    GateResult,
    IngestResult,
    Result,
    TrainResult,
)
from blip.runs.context import RunContext
from blip.runs.downstream import (
    ingest_settings,
    item_of,
    plan_downstream,
    register_task,
    summarise,
)
from blip.runs.outputs import StepOutput
from blip.tracking import champion
from blip.workers.model import model_digest
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

    def planned(*overrides: str) -> list[str]:
        return plan_downstream("blip", "vqa", ["vqa", "nlvr"], "shapes", overrides)[1]

    plan = planned(*given)
    assert [setting for setting in plan if not setting.startswith("key.")] == [given[0], *given[2:]]
    assert planned("vqa.epochs=2", "nlvr.epochs=4", *given[2:]) == plan
    changed = planned("vqa.epochs=3", *given[2:])
    judged = planned(*given, "evaluate.vqa.answer_tokens=9")
    assert {s for s in judged if s.startswith("key.evaluate")} != {s for s in plan if s.startswith("key.evaluate")}
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
        (
            "vqa",
            "dialog.epochs=3",
            r"'dialog\.epochs=3' is of dialog, which tasks=\[vqa, nlvr\] leaves out: add dialog",
        ),
        ("vqa", "ingest_dialog.data.world.gold=3", "is of dialog, which .* leaves out: add dialog to tasks"),
        ("vqa", "evaluate.video_retrieval.rerank=3", "is of video_retrieval, which .* leaves out: add retrieval to"),
        ("vqa", "evaluate.tasks=[vqa]", "each model is judged on its own task; set tasks instead"),
        ("vqa", "register.gate=[dialog.mrr]", r"register\.gate asks for dialog\.mrr, which .* leaves out"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(task: str, override: str, said: str):
    with pytest.raises(ConfigError, match=said):
        plan_downstream("blip", task, ["vqa", "nlvr"], "shapes", [override])


@pytest.mark.parametrize(
    "override", ["evaluate.video_qa.answer_tokens=9", "register.gate=[video_qa.accuracy]", "evaluate.workers=1"]
)
def test_settings_of_the_chosen_tasks_and_of_their_video_task_are_read(override: str):
    stage, settings = plan_downstream("blip", "vqa@first", ["vqa@first", "vqa"], "shapes", [override])
    assert stage == "vqa"
    assert override in settings


def test_a_tasks_own_data_take_the_place_of_the_world_of_shapes():
    assert ingest_settings("vqa", ["ingest.per_shard=5"]) == [
        "data.type=shapes_task",
        "data.task=vqa",
        "per_shard=5",
    ]
    own = ["ingest_vqa.data.type=vqav2", "ingest_nlvr.data.type=nlvr2"]
    assert ingest_settings("vqa", own) == ["data.type=vqav2"]


def made(store: Path, stage: str, result: Result, files: Path | None = None, **inputs: str) -> str:
    """Publishes an output of a step and returns its URI."""
    empty = store / "empty"
    empty.mkdir(exist_ok=True)
    return StepOutput.publish(str(store), stage, files or empty, result, inputs).uri


def trained(digest: str) -> TrainResult:
    return TrainResult(steps=1, losses={}, curves={"loss": [(1, 2.0), (2, 1.0)]}, seconds=10, digest=digest)


def test_the_report_has_the_scores_and_the_reason_of_every_task_from_both_models(tmp_path: Path):
    data = made(tmp_path, "ingest", IngestResult(splits={}, vocabulary=9, seconds=3))
    decisions = []
    for task, score, passed, first in (
        ("vqa", 70.0, False, True),
        ("vqa", 80.0, True, False),
        ("nlvr", 50.0, False, False),
    ):
        init = made(tmp_path, "fetch-model", FetchResult(source="m", task="pretraining", first=first, seconds=1))
        model = made(tmp_path, task, trained(f"{task}{first}"), init=init, data=data)
        judged = EvaluationResult(
            split="test", scores={task: {"accuracy": score}}, baseline={task: {"accuracy": 40.0}}, seconds=5
        )
        after = made(tmp_path, "evaluate", judged, model=model, data=data)
        gate = GateResult(registered=passed, reason=f"reason of {task}", seconds=1)
        decisions.append(StepOutput.load(made(tmp_path, "register", gate, model=model, after=after)))
    result = summarise(decisions)
    assert result == DownstreamResult(
        scores={"vqa": {"accuracy": 80.0}, "nlvr": {"accuracy": 50.0}},
        first={"vqa": {"accuracy": 70.0}},
        baseline={"vqa": {"accuracy": 40.0}, "nlvr": {"accuracy": 40.0}},
        registered={"vqa": True, "nlvr": False},
        reasons={"vqa@first": "reason of vqa", "vqa": "reason of vqa", "nlvr": "reason of nlvr"},
        curves={name: {"loss": [(1, 2.0), (2, 1.0)]} for name in ("vqa@first", "vqa", "nlvr")},
        seconds_by_task=dict.fromkeys(("vqa@first", "vqa", "nlvr"), 20.0),
        seconds=60,
    )
    assert result.compared()["vqa.accuracy"] == 80
    assert result.compared()["vqa.accuracy_first"] == 70


def test_a_training_knows_its_item_from_the_model_that_it_starts_from(tmp_path: Path):
    fetched = [
        made(tmp_path, "fetch-model", FetchResult(source="m", task="pretraining", first=first, seconds=1))
        for first in (True, False)
    ]
    assert [item_of("vqa", uri) for uri in fetched] == ["vqa@first", "vqa"]
    assert item_of("captioner", fetched[0]) == item_of("vqa", "") == ""


def test_what_starts_from_the_first_model_is_compared_and_never_becomes_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    better, other = (Path(model_folder(both(number), tmp_path / str(number))) for number in range(2))

    def registered(item: str, model: Path, score: float) -> GateResult:
        file = tmp_path / "metrics.json"
        digest = model_digest(model)
        EvaluationResult(split="test", scores={"captioning": {"cider": score}}, digest=digest).save(file)
        run = RunContext(preset="shapes", store=str(tmp_path / "store"))
        return register_task(run, "blip", item, model=model, after=file)

    compared = registered("captioning@first", better, 90.0)
    assert not compared.registered
    assert compared.reason.startswith("not registered: captioning@first starts from the bootstrap's first model")
    assert champion("blip-captioning") is None
    assert registered("captioning", other, 80.0).version == 1
