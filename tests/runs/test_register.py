"""The gate passes models with better finite scores, and nothing else."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_models import both, model_folder

from blip.config import ConfigError
from blip.results import GateResult
from blip.runs.context import RunContext
from blip.runs.register import check_name, register
from blip.tracking import champion
from blip.tracking.server import mlflow_client
from blip.workers.model import model_digest

LOW, MIDDLE, HIGH = ((1.0, 2.0), (5.0, 9.0), (6.0, 9.5))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_folder(both(), tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture
def mlflow(database: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "BLIP_GROUP", "BLIP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return mlflow_client(database)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The test's own model name."""
    return re.sub(r"\W+", "-", request.node.name)[:60].strip("-")


@pytest.fixture
def gate(mlflow, model, tmp_path, name):
    """Registers a model of its own for each call; takes scores before and after."""
    assert mlflow
    count = iter(range(100))

    def another() -> Path:
        folder = tmp_path / f"model-{next(count)}"
        shutil.copytree(model, folder)
        (folder / "note.txt").write_text(folder.name)  # so that no two have one digest
        return folder

    def run(before, after, *overrides: str, folder: Path | None = None) -> GateResult:
        folder = folder or another()
        paths = [figures(tmp_path / f"{when}.json", values) for when, values in (("before", before), ("after", after))]
        context = RunContext(preset="shapes", overrides=overrides, revision="r1")
        return register(context, name, model=folder, before=paths[0], after=paths[1])

    return run


def figures(path: Path, values) -> str:
    if isinstance(values, tuple):
        values = {"scores": {"retrieval": {"mean": values[0]}, "captioning": {"cider": values[1]}}}
    path.write_text(values if isinstance(values, str) else json.dumps({"split": "test", **values}))
    return str(path)


def test_a_better_model_is_the_champion_and_says_so_in_mlflow(gate, mlflow, name):
    made = gate(LOW, MIDDLE)
    assert (made.registered, made.version) == (True, 1)
    assert made.reason == f"registered as version 1 of {name}, its champion: it beats the first model"
    held = champion(name)
    assert held
    assert held.metrics == {"retrieval.mean": 5.0, "captioning.cider": 9.0}
    run = mlflow.get_run(str(mlflow.get_model_version(name, "1").run_id))
    assert run.data.tags["gate"] == made.reason


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["new", "first"])
def test_a_score_that_is_no_number_is_refused(gate, name, score, whose):
    bad = (score, 2.0)
    made = gate(*((LOW, bad) if whose == "new" else (bad, MIDDLE)))
    assert (made.registered, made.version) == (False, None)
    owner = "" if whose == "new" else "the first model's "
    assert made.reason == f"not registered: {owner}retrieval.mean is {score}, which is no score"
    assert champion(name) is None


@pytest.mark.parametrize("key", ["captioning.cider", "captioning"])
@pytest.mark.parametrize("whose", ["new", "first"])
def test_a_score_that_could_not_be_computed_is_refused_with_the_reason(gate, name, key, whose):
    bad = {"scores": {"retrieval": {"mean": 9.0}}, "not_scored": {key: "no image has captions"}}
    made = gate(*((LOW, bad) if whose == "new" else (bad, MIDDLE)))
    owner = "" if whose == "new" else "the first model's "
    assert made.reason == f"not registered: {owner}captioning.cider is not scored: no image has captions"
    assert champion(name) is None


def held_by(mlflow, gate, name, metrics: dict[str, float]) -> None:
    """Makes a champion with scores that former versions of the gate passed."""
    gate(LOW, MIDDLE)
    for metric in ("retrieval.mean", "captioning.cider"):
        mlflow.delete_model_version_tag(name, "1", f"score.{metric}")
    for metric, value in metrics.items():
        mlflow.set_model_version_tag(name, "1", f"score.{metric}", repr(value))


def test_a_champion_without_a_finite_score_is_replaced(gate, mlflow, name):
    held_by(mlflow, gate, name, {"retrieval.mean": math.nan, "captioning.cider": math.nan})
    made = gate(LOW, MIDDLE)
    assert (made.registered, made.version) == (True, 2)
    assert "it beats the first model alone, for version 1 has no finite retrieval.mean, captioning.cider" in made.reason


def test_a_champion_of_another_gate_does_not_block(gate, mlflow, name):
    held_by(mlflow, gate, name, {"vqa.accuracy": 70.0})
    made = gate(LOW, MIDDLE)
    assert (made.registered, made.version) == (True, 2)
    assert made.reason.endswith("(it has vqa.accuracy)")


def test_of_two_gates_the_scores_in_common_decide(gate, mlflow, name):
    held_by(mlflow, gate, name, {"vqa.accuracy": 70.0, "captioning.cider": 9.2})
    made = gate(LOW, MIDDLE)
    assert made.reason == "not registered: captioning.cider is 9, the champion's (version 1) is 9.2"
    made = gate(LOW, HIGH)
    assert made.registered
    assert made.reason.endswith("it beats the first model and version 1 (in captioning.cider alone)")


def test_an_equal_model_does_not_take_the_champions_place_and_the_same_one_keeps_it(gate, tmp_path):
    first = gate(LOW, MIDDLE)
    assert gate(LOW, MIDDLE).reason == "not registered: no score is better than the champion's (version 1)"
    again = gate(LOW, MIDDLE, folder=tmp_path / "model-0")
    assert (again.registered, again.version) == (True, first.version)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "no such file or folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_registered(gate, name, model, tmp_path, damage, said):
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    damage(folder)
    with pytest.raises(ConfigError, match=said) as error:
        gate(LOW, MIDDLE, folder=folder)
    assert "\n" not in str(error.value)
    assert champion(name) is None


def test_another_model_than_was_evaluated_is_refused(gate, model):
    after = {"scores": {"retrieval": {"mean": 5.0}, "captioning": {"cider": 9.0}}, "digest": model_digest(model)}
    assert gate(LOW, after, folder=model).registered
    with pytest.raises(ConfigError, match="is not the model that --after was measured of"):
        gate(LOW, after)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "before.json is not JSON"),
        ("{", "before.json is not JSON"),
        ("[" * 100_000, "before.json is not JSON"),
        ("[1]", "must hold the metrics.json of a finished evaluate, holds a list"),
        ("null", "must hold the metrics.json of a finished evaluate, holds a NoneType"),
        ('{"split": "test", "scores": {}}', "there are none"),
        (
            '{"split": "test", "scores": {"retrieval": {"mean": 1}}}',
            "captioning.cider was not measured; there are retrieval.mean",
        ),
        ('{"split": "test", "scores": {"retrieval": {"mean": "high"}}}', "scores.retrieval.mean"),
        ('{"split": "test", "scores": {"retrieval": 5}}', "scores.retrieval"),
    ],
)
def test_garbled_figures_are_one_line(gate, text, said):
    with pytest.raises(ConfigError, match=said) as error:
        gate(text, MIDDLE)
    assert "\n" not in str(error.value)


def test_missing_figures_are_one_line(model, tmp_path):
    with pytest.raises(
        ConfigError, match=r"none.json: No such file or directory; name the metrics.json of a finished evaluate"
    ):
        register(
            RunContext(preset="shapes"), "m", model=model, before=tmp_path / "none.json", after=tmp_path / "none.json"
        )


@pytest.mark.parametrize("name", ["blip", "my model", "o-2_b.3", "größe", "7"])
def test_names_that_everybody_takes(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "bob's",
        'a"b',
        "a/b",
        "a:b",
        ".",
        "..",
        "../a",
        ".a",
        "-a",
        "a ",
        "a\nb",
        "a\0",
        "a%b",
        "a@b",
        "a=b",
        "x" * 101,
    ],
)
def test_names_that_somebody_refuses(name):
    with pytest.raises(ConfigError, match=r"model name .* use at most 100 letters"):
        check_name(name)


def measured(**scores: dict[str, float]) -> dict:
    return {"scores": scores}


def test_the_gate_takes_scores_of_any_task_with_margins(gate, mlflow):
    margins = "gate={retrieval.ir1: 0.0, caption.cider: -0.5, dialog.mean_rank: 1.0}"

    def scored(ir1: float, cider: float, rank: float) -> dict:
        return measured(retrieval={"ir1": ir1}, captioning={"cider": cider}, dialog={"mean_rank": rank})

    first = scored(40.0, 90.0, 8.0)
    for after, said in (
        (scored(40.0, 91.0, 3.0), "retrieval.ir1 is 40, the first model's is 40"),
        (
            scored(41.0, 89.5, 3.0),
            "captioning.cider is 89.5, the first model's is 90 (the gate asks for a gain of -0.5)",
        ),
        (scored(41.0, 90.0, 7.0), "dialog.mean_rank is 7, the first model's is 8 (the gate asks for a gain of +1)"),
    ):
        made = gate(first, after, margins)
        assert (made.registered, made.reason) == (False, f"not registered: {said}")
        assert mlflow.get_run(made.mlflow.rpartition("/")[2]).data.tags["gate"] == made.reason if made.mlflow else True
    assert gate(first, scored(41.0, 89.6, 6.5), margins).registered
    assert gate(first, scored(41.0, 89.2, 5.0), margins).reason.startswith("not registered: captioning.cider is 89.2")
    worse = gate(first, scored(42.0, 90.0, 6.0), margins)
    assert worse.reason == (
        "not registered: dialog.mean_rank is 6, the champion's (version 1) is 6.5 (the gate asks for a gain of +1)"
    )
    assert gate(first, scored(42.0, 90.0, 5.0), margins).version == 2


def test_a_list_of_scores_asks_for_no_margin(gate):
    assert gate(LOW, (1.5, 2.0), "gate=[retrieval.mean]").registered
    with pytest.raises(ConfigError, match=r"gate: vqa\.accuracy was not measured"):
        gate(LOW, MIDDLE, "gate={vqa.accuracy: 0.0}")
    with pytest.raises(ConfigError, match=r"gate\.retrieval\.mean"):
        gate(LOW, MIDDLE, "gate={retrieval.mean: high}")
