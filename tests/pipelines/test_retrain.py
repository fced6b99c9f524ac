"""A retraining runs on new shards; without any it does nothing and reports so."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from kfp import compiler
from new_words import new_words
from typer.testing import CliRunner

from blip.datasets import shapes
from blip.shards.manifest import Manifest
from blip.shards.writing import write_shards
from pipelines import __main__ as command
from pipelines import lint
from pipelines.bootstrap import bootstrap
from pipelines.parameters import steps
from pipelines.retrain import retrain


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("build") / "retrain.yaml"
    compiler.Compiler().compile(retrain, str(path))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def spec(text) -> dict:
    return next(yaml.safe_load_all(text))


def test_the_bootstrap_runs_under_the_condition_on_the_manifest_of_what_is_new(spec):
    look, condition = spec["root"]["dag"]["tasks"]["find-new-shards"], spec["root"]["dag"]["tasks"]["condition-1"]
    assert (
        condition["triggerPolicy"]["condition"]
        == "int(inputs.parameter_values['pipelinechannel--find-new-shards-Output']) > 0"
    )
    assert not look["cachingOptions"].get("enableCache")
    (inner,) = spec["components"]["comp-condition-1"]["dag"]["tasks"].values()
    given = {name: one["componentInputParameter"] for name, one in inner["inputs"]["parameters"].items()}
    assert given.pop("source") == "pipelinechannel--find-new-shards-manifest"
    assert given == {name: f"pipelinechannel--{name}" for name in bootstrap.component_spec.inputs if name != "source"}
    tasks = spec["components"][inner["componentRef"]["name"]]["dag"]["tasks"].values()
    assert {task["taskInfo"]["name"] for task in tasks} == {step.name for step in steps(bootstrap)}


def test_both_pipelines_take_the_same_parameters_but_the_source():
    ours, theirs = (
        {name: (str(one.type), one.default) for name, one in p.component_spec.inputs.items()}
        for p in (retrain, bootstrap)
    )
    assert theirs.pop("source")
    without_default = {name: (theirs[name][0], None) for name in ("preset", "overrides")}
    assert ours == {**theirs, **without_default}


def test_what_has_no_default_that_could_work_has_none():
    assert retrain.required_inputs == ["store", "preset", "overrides"]
    assert [*retrain.component_spec.inputs][:3] == ["store", "preset", "overrides"]


def test_the_description_numbers_every_step():
    assert [step.number for step in steps(retrain)] == list(range(1, 14))
    assert [(step.name, step.purpose) for step in steps(retrain)[1:]] == [
        (step.name, step.purpose) for step in steps(bootstrap)
    ]


def test_the_lint_finds_nothing(text):
    assert lint.faults(text) == []


def test_the_steps_are_placed_as_in_the_bootstrap(text, tmp_path):
    compiler.Compiler().compile(bootstrap, str(tmp_path / "bootstrap.yaml"))
    for ours, theirs in zip(
        yaml.safe_load_all(text),
        yaml.safe_load_all((tmp_path / "bootstrap.yaml").read_text(encoding="utf-8")),
        strict=True,
    ):
        ours, theirs = (
            one.get("deploymentSpec") or one["platforms"]["kubernetes"]["deploymentSpec"] for one in (ours, theirs)
        )
        assert ours["executors"].pop("exec-find-new-shards")
        assert ours == theirs


class Project:
    """A folder with tars, and `python -m pipelines run` of a pipeline that finds the new ones."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "root"
        self.web = [*shapes.web_samples(shapes.ShapesConfig(web=6))]
        world = shapes.ShapesConfig(gold=4, test=2)
        for split, samples in (("gold", shapes.gold_samples(world)), ("test", shapes.test_samples(world))):
            write_shards(samples, folder / split, split)

    def add(self, name: str, first: int, last: int) -> None:
        write_shards(self.web[first:last], self.folder / "web", name)

    def run(self) -> tuple[int, list[str]]:
        tars = ["type=tars", *(f"{split}={self.folder / split}/" for split in ("gold", "web", "test"))]
        settings = [f"trouble={self.folder / 'trouble'}", *(f"ingest.data.{setting}" for setting in tars)]
        words = [word for setting in settings for word in ("--set", setting)]
        done = CliRunner().invoke(command.app, ["run", "retrain", "--root", str(self.root), *words])
        return done.exit_code, [
            line for line in done.output.splitlines() if not line.startswith(("✓", "MLflow", "report"))
        ]


def test_only_what_is_new_is_learnt_from(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_pipeline", lambda _: new_words)
    monkeypatch.setattr(
        command, "print_summary", lambda latest: typer.echo(str(Manifest.load(latest / "summary.json").samples))
    )
    project = Project(tmp_path)
    project.add("old", 0, 4)
    all_steps = ["[1/3] find-new-shards — find new ones", "[2/3] read — read them", "[3/3] report — show them"]

    (tmp_path / "trouble").touch()
    code, said = project.run()
    assert (code, said[:3], said[3][:26]) == (1, all_steps, "✗ report failed: ValueErro"[:26])
    (tmp_path / "trouble").unlink()
    cached = [all_steps[0], f"{all_steps[1]} · done before", all_steps[2], "4"]
    assert project.run() == (0, cached), "a failed run's shards are looked at again, and what it did is not done again"
    old = Manifest.load(project.root / "latest" / "summary.json")

    assert project.run() == (
        0,
        [all_steps[0], f"no new shards in {tmp_path}/web/ since manifest {old.digest[:8]}: nothing to do"],
    )

    project.add("new", 4, 6)
    assert project.run() == (0, [*all_steps, "2"])
    new = json.loads((project.root / "latest" / "summary.json").read_text(encoding="utf-8"))
    assert ([shard["name"][:3] for shard in new["shards"]], new["parents"]) == (["new"], [old.digest])
