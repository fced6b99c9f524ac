import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient, MlflowException
from mlflow.artifacts import download_artifacts
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from small_disk import small_disk

from blip import tracking
from blip.tracking import TrackingError
from blip.tracking import mlflow_run as runs
from blip.tracking.server import SettingError, count_tables, create_database, mlflow_client


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, since its creation takes seconds; each test has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def mlflow(database: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MlflowClient:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "BLIP_GROUP", "BLIP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return mlflow_client(database)


def runs_of(mlflow: MlflowClient):
    experiment = mlflow.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert experiment
    return mlflow.search_runs([experiment.experiment_id])


def test_a_run_keeps_parameters_curves_parents_and_artifacts(mlflow, tmp_path):
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer" / "vocab.txt").write_text("a", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with tracking.start_run("pretrain", parents={"web": "abc"}, tags={"revision": "v1"}) as run:
        run.params({"optimizer": {"lr": 1e-4, "betas": (0.9, 0.99)}, "note": "x" * 9000})
        for step in range(250):
            run.metrics({"train/itc": 3.0 - step / 100}, step)
        run.tags({"alarm": "none"})
        run.artifact(tmp_path / "config.json")
        run.artifacts(tmp_path / "model", "model")
    kept = mlflow.get_run(run.id)
    assert kept.info.run_name == "pretrain"
    assert kept.info.status == "FINISHED"
    assert kept.data.params["optimizer.lr"] == "0.0001"
    assert kept.data.params["optimizer.betas"] == "[0.9, 0.99]"
    assert len(kept.data.params["note"]) == 500
    assert kept.data.tags.items() >= {"parent.web": "abc", "revision": "v1", "alarm": "none"}.items()
    assert [(m.step, m.value) for m in mlflow.get_metric_history(run.id, "train/itc")] == [
        (s, 3.0 - s / 100) for s in range(250)
    ]
    assert sorted(a.path for a in mlflow.list_artifacts(run.id)) == ["config.json", "model"]
    assert [a.path for a in mlflow.list_artifacts(run.id, "model/tokenizer")] == ["model/tokenizer/vocab.txt"]


def test_the_load_of_the_machine_is_kept_unless_it_is_switched_off(mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    for switch in ("true", "false"):
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", switch)
        with tracking.start_run(switch) as run:
            assert run.id
            time.sleep(1)
    known = {run.info.run_name: set(run.data.metrics) for run in runs_of(mlflow)}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= known["true"]
    assert not known["false"]


def test_a_failed_run_says_so_and_lets_the_error_travel(mlflow):
    def step() -> None:
        with tracking.start_run("pretrain") as run:
            run.metrics({"train/itc": 3.0})
            raise ValueError("no such shard")

    with pytest.raises(ValueError, match="no such shard"):
        step()
    (kept,) = runs_of(mlflow)
    assert kept.info.status == "FAILED"
    assert kept.data.tags["error"] == "ValueError: no such shard"
    assert kept.data.metrics == {"train/itc": 3.0}


def test_a_loop_never_waits_for_the_database(mlflow, monkeypatch):
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    write, slow = mlflow.log_batch, threading.Event()
    monkeypatch.setattr(mlflow, "log_batch", lambda *args: slow.wait(10) and write(*args))
    with tracking.start_run("pretrain") as run:
        assert run.id
        for step in range(50):
            run.metrics({"train/itc": 1.0}, step)
        slow.set()
    assert len(mlflow.get_metric_history(run.id, "train/itc")) == 50


def test_records_wait_while_mlflow_is_away(mlflow, monkeypatch):
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    write, away = mlflow.log_batch, iter([True, True])

    def log_batch(*args):
        if next(away, False):
            raise MlflowException("away", TEMPORARILY_UNAVAILABLE)
        write(*args)

    monkeypatch.setattr(mlflow, "log_batch", log_batch)
    with tracking.start_run("pretrain") as run:
        for step in range(3):
            run.metrics({"train/itc": 1.0}, step)
            assert isinstance(run, runs.MlflowRun)
            run.work.result()
    assert [m.step for m in mlflow.get_metric_history(run.id, "train/itc")] == [0, 1, 2]


@pytest.mark.usefixtures("mlflow")
def test_what_mlflow_refuses_is_an_error_that_names_it(database):
    with pytest.raises(TrackingError, match=r"no\$name") as error, tracking.start_run("pretrain") as run:
        run.metrics({"no$name": 1.0})
    assert database in str(error.value)


@pytest.mark.usefixtures("mlflow")
def test_mlflow_that_is_not_there_is_an_error_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with (
        pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 does not answer .* BLIP_TRACKING=off"),
        tracking.start_run("pretrain"),
    ):
        pass
    for odd in ("http://[::1", "http://127.0.0.1:port"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", odd)
        with pytest.raises(SettingError, match="is not an address"), tracking.start_run("pretrain"):
            pass
    for odd in ("soon", "nan", "-1", "inf"):
        monkeypatch.setenv("BLIP_TRACKING_PATIENCE", odd)
        with pytest.raises(SettingError, match=f"BLIP_TRACKING_PATIENCE={odd} must be"), tracking.start_run("pretrain"):
            pass
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match=r"file/mlflow\.db cannot be opened"), tracking.start_run("pretrain"):
        pass


@pytest.mark.usefixtures("mlflow")
def test_a_disk_without_room_for_the_database_is_an_error_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    refused = pytest.raises(TrackingError, match=r"mlflow\.db cannot be opened .*large.*: make it writable, with room")
    with small_disk(4096), refused, tracking.start_run("pretrain"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_database_whose_making_was_killed_is_made_again(tmp_path):
    path = tmp_path / "mlflow.db"
    code = "import pathlib, sys; from blip.tracking import server; server.create_database(pathlib.Path(sys.argv[1]))"
    killed = subprocess.Popen([sys.executable, "-c", code, path])
    while not (path.with_name("mlflow.db.aside").exists() and count_tables(path.with_name("mlflow.db.aside"))):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert count_tables(path) == 0
    create_database(path)
    assert count_tables(path) > 20
    assert [
        left.name for left in tmp_path.iterdir() if left.name.startswith(("mlflow.db.aside", "mlflow.db.whole"))
    ] == []


def test_a_killed_step_goes_on_in_its_own_run(mlflow):
    def attempt(lr: float, step: int, fail: bool) -> str:
        with tracking.start_run("pretrain", key="model-a") as run:
            run.params({"lr": lr, "seed": 1})
            run.metrics({"train/itc": 1.0}, step)
            if fail:
                raise KeyboardInterrupt
        return run.id

    with pytest.raises(KeyboardInterrupt):
        attempt(0.1, 0, fail=True)
    (killed,) = runs_of(mlflow)
    assert killed.info.status == "KILLED"
    assert attempt(0.2, 1, fail=False) == killed.info.run_id
    kept = mlflow.get_run(killed.info.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"lr": "0.1", "seed": "1"}
    assert kept.data.tags["changed.lr"] == "0.2"
    assert [m.step for m in mlflow.get_metric_history(kept.info.run_id, "train/itc")] == [0, 1]
    assert attempt(0.1, 0, fail=False) != kept.info.run_id


def test_a_run_that_another_system_made_is_used(mlflow, monkeypatch):
    given = mlflow.create_run(mlflow.create_experiment("given"), run_name="task").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with tracking.start_run("pretrain", tags={"revision": "v1"}) as run:
        run.metrics({"train/itc": 3.0})
    assert run.id == given
    kept = mlflow.get_run(given)
    assert kept.info.run_name == "task"
    assert kept.data.tags["revision"] == "v1"
    assert kept.data.metrics == {"train/itc": 3.0}


def test_a_run_begins_when_it_is_started_however_late_mlflow_is(mlflow, monkeypatch):
    opened = runs.MlflowRun.open
    monkeypatch.setattr(runs.MlflowRun, "open", lambda run: time.sleep(0.5) or opened(run))
    before = time.time() * 1000
    with tracking.start_run("task"):
        pass
    (kept,) = runs_of(mlflow)
    assert 0 <= kept.info.start_time - int(before) < 400


def test_a_group_gathers_its_runs(mlflow, monkeypatch):
    monkeypatch.setenv("BLIP_GROUP", "bootstrap-1")
    for name in ("pretrain", "pretrain-again"):
        monkeypatch.setenv("MLFLOW_RUN_NAME", name)
        with tracking.start_run("pretrain"):
            pass
    named = {r.info.run_name: r for r in runs_of(mlflow)}
    assert set(named) == {"bootstrap-1", "pretrain", "pretrain-again"}
    assert {named[n].data.tags["mlflow.parentRunId"] for n in ("pretrain", "pretrain-again")} == {
        named["bootstrap-1"].info.run_id
    }
    assert named["bootstrap-1"].info.status == "FINISHED"


@pytest.mark.usefixtures("mlflow")
@pytest.mark.parametrize(("name", "value"), [("BLIP_TRACKING", "off"), ("RANK", "1")])
def test_nothing_is_kept_when_tracking_is_off_and_on_other_ranks(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv(name, value)
    with tracking.start_run("pretrain") as run:
        run.params({"lr": 0.1})
        run.metrics({"train/itc": 3.0})
        run.artifact(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrackingError, match="BLIP_TRACKING"):
        tracking.register_model(run, tmp_path, "blip", {})


@pytest.mark.usefixtures("mlflow")
def test_a_process_forks_only_when_mlflow_is_imported():
    with tracking.start_run("pretrain") as run:
        child = os.fork()
        if not child:
            os._exit(0)
        assert isinstance(run, runs.MlflowRun)
        assert run.opened.done()
    os.waitpid(child, 0)


def model_folder(path: Path, weights: bytes) -> Path:
    (path / "tokenizer").mkdir(parents=True)
    (path / "tokenizer" / "vocab.txt").write_text("a", encoding="utf-8")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_model_is_registered_promoted_and_fetched(mlflow, tmp_path):
    first, second = (model_folder(tmp_path / str(n), bytes([n])) for n in (1, 2))
    assert tracking.champion("shapes") is None
    with tracking.start_run("register") as run:
        assert tracking.register_model(run, first, "shapes", {"tr1": 0.25}, {"revision": "v1"}) == 1
        assert tracking.register_model(run, first, "shapes", {"tr1": 0.25}) == 1, "the same bytes are the same version"
        assert tracking.champion("shapes") is None
        tracking.promote("shapes", 1)
        assert tracking.champion("shapes")[:2] == (1, {"tr1": 0.25})
        assert tracking.register_model(run, second, "shapes", {"tr1": 0.5}) == 2
        tracking.promote("shapes", 2)
    assert tracking.champion("shapes")[:2] == (2, {"tr1": 0.5})
    version = mlflow.get_model_version("shapes", "1")
    assert version.run_id == run.id
    assert version.tags["revision"] == "v1"
    source = mlflow.get_model_version_download_uri("shapes", "2")
    fetched = Path(download_artifacts(source, dst_path=str(tmp_path / "new")))
    assert (fetched / "model.safetensors").read_bytes() == bytes([2])
    assert (fetched / "tokenizer" / "vocab.txt").read_text(encoding="utf-8") == "a"
