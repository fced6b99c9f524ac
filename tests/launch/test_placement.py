"""The placement of a step's work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import picture, samples
from typer.testing import CliRunner

from blip.cli import app
from blip.config import ConfigError, validate
from blip.launch import placement
from blip.launch.placement import Placement
from blip.launch.trainjob import TrainJobConfig, render_trainjob
from blip.launch.workers import WorkersConfig
from blip.results import TrainResult
from blip.runs import train as training
from blip.runs.context import RunContext
from blip.runs.train import train
from blip.shards.sample import Sample
from blip.shards.writing import write_shards

RESULT = TrainResult(steps=4, losses={"itc": 1.0}, curves={})
STEP = {
    "image": "example/blip:3f2a1b0",
    "gpus": "8",
    "gpu_type": "nvidia.com/gpu",
    "cpu": "88",
    "memory": "900Gi",
    "pool": {"a": "b"},
}


def placed(**asked: Any) -> Placement:
    return validate(Placement, {**STEP, **asked}, "jobs")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJobConfig]:
    """Records the requested jobs; each hands over an output and figures."""
    asked: list[TrainJobConfig] = []

    def run(cfg: TrainJobConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
        asked.append(cfg)
        assert all(folder.is_dir() for folder in inputs.values())
        outputs["made"].mkdir()
        (outputs["made"] / "config.json").write_text("{}")
        RESULT.save(outputs["made"] / "figures.json")

    monkeypatch.setattr(placement, "run_trainjob", run)
    return asked


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a pair in each source."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("gold", "web"):
        write_shards(samples(1), tmp_path / "shards", name, 1).save(folder / f"{name}.json")
    return folder


def test_several_nodes_train_by_the_same_verb(jobs: list[TrainJobConfig], data: Path, tmp_path: Path):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "config.json").write_text('{"format": 1, "task": {}, "model": {}}')
    context = RunContext(preset="base", overrides=("optimizer.lr=1e-4",), store="s3://bucket/run", revision="r1")
    places = {"data": data, "out": tmp_path / "model", "init": tmp_path / "init"}
    assert train(context, "captioner", **places, placed=placed(nodes="2")) == RESULT
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    (job,) = jobs
    assert (job.nodes, job.processes, job.gpus, job.handover) == (2, 8, 8, "s3://bucket/run/handover")
    assert job.args[:2] == ("train", "captioner")
    told = dict(zip(job.args[2::2], job.args[3::2], strict=True))
    assert told["--data"] == "/scratch/in/data"
    assert told["--init"] == "/scratch/in/init"
    assert told["--set"] == "optimizer.lr=1e-4"
    assert Path(told["--figures"]).parent == Path(told["--out"])
    render_trainjob(job)


def test_the_verb_that_nodes_run_takes_what_they_are_told(jobs: list[TrainJobConfig], data: Path, tmp_path: Path):
    context = RunContext(preset="shapes", overrides=("epochs=2",), store="s3://b/r", revision="r1")
    train(context, "pretrain", data=data, out=tmp_path / "model", placed=placed(nodes="2", workers="4"))
    args = [arg.replace("/scratch", str(tmp_path / "scratch")) for arg in jobs[0].args]
    (tmp_path / "scratch" / "in" / "data").mkdir(parents=True)
    (tmp_path / "scratch" / "in" / "data" / "gold.json").write_text("{}")
    (tmp_path / "scratch" / "out" / "made").mkdir(parents=True)
    done = CliRunner().invoke(app, [*args, "--set", "no.such.key=1"])
    assert done.exit_code == 42
    assert "unknown key no" in done.output, "it got as far as the configuration"


def test_jobs_run_in_the_image_of_their_step_under_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "pretrain-again")
    monkeypatch.setenv("BLIP_IMAGE", "example/blip:3f2a1b0")
    found = placed(nodes=2, workers=16).model_copy(update={"image": ""})
    job = found.job(TrainJobConfig, name="pretrain", processes=8, handover="s3://b/handover")
    node = render_trainjob(job)["spec"]["trainer"]
    assert node["image"] == "example/blip:3f2a1b0"
    assert node["resourcesPerNode"]["limits"] == {"cpu": "88", "memory": "900Gi", "nvidia.com/gpu": "8"}
    told = {e["name"]: e.get("value") for e in node["env"]}
    assert (told["BLIP_GROUP"], told["MLFLOW_RUN_NAME"]) == ("run-7", "pretrain-again")
    assert found.job(WorkersConfig, name="capfilt").workers == 16


def test_without_jobs_the_step_trains_itself(monkeypatch: pytest.MonkeyPatch, jobs: list[TrainJobConfig]):
    monkeypatch.setattr(training, "train_here", lambda *given: given[1])
    for asked in (None, Placement(), placed()):
        assert train(RunContext(preset="shapes"), "pretrain", data="data", out="out", placed=asked) == "pretrain"
    assert not jobs


def test_data_that_teach_nothing_are_refused_before_nodes_are_asked_for(
    jobs: list[TrainJobConfig], data: Path, tmp_path: Path
):
    write_shards([Sample("0", [picture(0)], [])], tmp_path / "shards", "mute", 1).save(data / "gold.json")
    with pytest.raises(ConfigError, match=r"nothing to train on: none of the 1 samples of .*gold.json has a text"):
        train(RunContext(preset="shapes"), "captioner", data=data, out="out", placed=placed(nodes=2))
    assert not jobs


def test_a_store_that_nodes_do_not_share_is_refused(jobs: list[TrainJobConfig], data: Path, tmp_path: Path):
    context = RunContext(preset="shapes", store=str(tmp_path))
    with pytest.raises(ConfigError, match="handover"):
        train(context, "pretrain", data=data, out="out", placed=placed(nodes=2))
    assert not jobs


@pytest.mark.parametrize(
    ("asked", "nodes", "pods"), [({"nodes": 2}, 2, 2), ({"workers": 4}, 1, 4), ({"nodes": "2", "workers": "16"}, 2, 16)]
)
def test_either_all_work_is_done_in_jobs_or_none(asked, nodes, pods):
    found = placed(**asked)
    assert found.job(TrainJobConfig, name="pretrain", processes=8, handover="s3://b/h").nodes == nodes
    assert found.job(WorkersConfig, name="capfilt").workers == pods
    assert placement.workers(found, "evaluate") is not None
    own = found.own_pod()
    assert (own.gpus, own.pool, own.tolerations) == (0, {}, ()), "a pod that watches holds no GPU"


def test_without_jobs_the_steps_own_pod_has_the_gpus():
    assert placement.workers(placed(), "evaluate") is None
    assert placed().own_pod() == placed()
