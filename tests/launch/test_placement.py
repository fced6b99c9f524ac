"""Where a step's work is done."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip.cli import app
from blip.config import ConfigError
from blip.launch import placement
from blip.launch.trainjob import TrainJobConfig, render
from blip.runs import train as training

STEP = {"image": "example/blip:3f2a1b0", "gpus": "8", "gpu_type": "nvidia.com/gpu", "cpu": "88", "memory": "900Gi", "pool": {"a": "b"}}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJobConfig]:
    """The jobs that are asked for; each hands over what it made, and figures."""
    asked: list[TrainJobConfig] = []

    def run(cfg: TrainJobConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
        asked.append(cfg)
        assert all(folder.is_dir() for folder in inputs.values())
        outputs["made"].mkdir()
        (outputs["made"] / "config.json").write_text("{}")
        (outputs["made"] / "figures.json").write_text(json.dumps({"losses": {"itc": 1.0}}))

    monkeypatch.setattr(placement, "run_job", run)
    return asked


def test_several_nodes_train_by_the_same_verb(jobs: list[TrainJobConfig], tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "init").mkdir()
    data, out, init = str(tmp_path / "data"), str(tmp_path / "model"), str(tmp_path / "init")
    figures = training.train_where_placed(
        {**STEP, "nodes": "2"}, "captioner", "base", ["optimizer.lr=1e-4"], "s3://bucket/run", "r1", data, out, init
    )
    assert figures == {"losses": {"itc": 1.0}}
    assert [path.name for path in Path(out).iterdir()] == ["config.json"]
    (job,) = jobs
    assert (job.nodes, job.processes, job.gpus, job.handover) == (2, 8, 8, "s3://bucket/run/handover")
    assert job.args[:2] == ("train", "captioner")
    told = dict(zip(job.args[2::2], job.args[3::2], strict=True))
    assert told["--data"] == "/scratch/in/data"
    assert told["--init"] == "/scratch/in/init"
    assert told["--set"] == "optimizer.lr=1e-4"
    assert Path(told["--figures"]).parent == Path(told["--out"])
    render(job)


def test_the_verb_that_nodes_run_takes_what_they_are_told(jobs: list[TrainJobConfig], tmp_path: Path):
    (tmp_path / "data").mkdir()
    data, out = str(tmp_path / "data"), str(tmp_path / "model")
    training.train_where_placed({**STEP, "nodes": "2", "workers": "4"}, "pretrain", "shapes", ["epochs=2"], "s3://b/r", "r1", data, out)
    done = CliRunner().invoke(app, [*jobs[0].args, "--set", "no.such.key=1"])
    assert done.exit_code == 42, "it got as far as the configuration"
    assert "no" in done.output


def test_what_jobs_get_is_read_from_the_pipelines_texts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "pretrain-again")
    texts = ["nodes=2", "workers=16", "gpus=8", "cpu=88", "memory=900Gi", "pool={gpu: a100}", "tolerations=[{operator: Exists}]"]
    found = placement.placement(texts, "example/blip:3f2a1b0")
    job = {**placement.without("workers", found), "name": "pretrain", "processes": 8, "handover": "s3://b/handover"}
    node = render(TrainJobConfig.model_validate(job))["spec"]["trainer"]
    assert node["resourcesPerNode"]["limits"] == {"cpu": "88", "memory": "900Gi", "nvidia.com/gpu": "8"}
    told = {e["name"]: e.get("value") for e in node["env"]}
    assert (told["BLIP_GROUP"], told["MLFLOW_RUN_NAME"]) == ("run-7", "pretrain-again")
    assert placement.workers(found, "capfilt") is not None


def test_one_node_trains_here(monkeypatch: pytest.MonkeyPatch, jobs: list[TrainJobConfig]):
    monkeypatch.setattr(training, "train", lambda *given: {"given": given})
    given = ("pretrain", "shapes", [], "store", "r1", "data", "out", None)
    for asked in ({}, {"nodes": "1"}, {**STEP, "nodes": 1}):
        assert training.train_where_placed(asked, *given) == {"given": given}
    assert not jobs


def test_a_store_that_nodes_do_not_share_is_refused(jobs: list[TrainJobConfig], tmp_path: Path):
    with pytest.raises(ConfigError, match="handover"):
        training.train_where_placed({**STEP, "nodes": 2}, "pretrain", "shapes", [], str(tmp_path), "r1", "data", "out")
    assert not jobs


def test_workers_are_pods_only_where_they_are_asked_for():
    assert placement.workers({}, "evaluate") is None
    assert placement.workers({**STEP, "nodes": "2"}, "evaluate") is None
    assert placement.workers({**STEP, "workers": "1"}, "evaluate") is not None
    assert placement.workers({**STEP, "workers": "16", "nodes": "2"}, "evaluate") is not None
    with pytest.raises(ConfigError, match="workres"):
        placement.workers({**STEP, "workers": "16", "workres": 2}, "evaluate")
