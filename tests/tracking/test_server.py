"""An MLflow server that is unavailable or requires a password, and processes that are killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from blip import tracking
from blip.cli.mistakes import user_error
from blip.config import EXIT_CONFIG
from blip.tracking import TrackingError, retries
from blip.tracking import mlflow_run as runs
from blip.tracking.resend import send_unsent
from blip.tracking.server import SettingError

FAULTS = ("away", "password", "hung")


class Server:
    """An MLflow server in its own process, which can stop and restart at the same address."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        (self.folder / "port").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("mlflow_server.py"), self.folder, str(self.port)]
        )
        while not self.chosen_port():
            assert self.process.poll() is None
            time.sleep(0.05)
        self.port = self.chosen_port()

    def chosen_port(self) -> int:
        """Returns the port that the server listens at, 0 before it has written the number."""
        path = self.folder / "port"
        return int(path.read_text(encoding="utf-8") or 0) if path.exists() else 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    MlflowClient(server.uri).search_experiments(max_results=1)  # makes the tables
    yield server
    server.stop()


@pytest.fixture
def server(
    one_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Server]:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "BLIP_GROUP", "BLIP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restores what `set_credentials` sets
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.5)
    monkeypatch.chdir(tmp_path)
    yield one_server
    for fault in FAULTS:
        (one_server.folder / fault).unlink(missing_ok=True)
    if one_server.process.poll() is not None:
        one_server.start()


def kept(server: Server):
    """Returns the runs of this test's experiment by name."""
    mlflow = MlflowClient(server.uri)
    experiment = mlflow.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    return {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])} if experiment else {}


def fetch(name: str, version: int, folder: Path) -> Path:
    """Downloads a registered model with MLflow alone."""
    source = MlflowClient().get_model_version_download_uri(name, str(version))
    return Path(download_artifacts(source, dst_path=str(folder)))


def points(server: Server, run_id: str, name: str) -> list[int]:
    return sorted(point.step for point in MlflowClient(server.uri).get_metric_history(run_id, name))


@pytest.mark.parametrize("how", ["500", "502", "503", "429", "stopped"])
@pytest.mark.parametrize("moment", ["in the middle", "at the end"])
def test_a_server_that_is_away_for_a_while_loses_nothing(server: Server, tmp_path: Path, how: str, moment: str):
    def go() -> None:
        server.stop() if how == "stopped" else (server.folder / "away").write_text(how, encoding="utf-8")

    def come_back() -> None:
        server.start() if how == "stopped" else (server.folder / "away").unlink()

    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with tracking.start_run("pretrain") as run:
        run.metrics({"train/itc": 1.0}, 0)
        go()
        for step in range(1, 20):
            run.metrics({"train/itc": 1.0}, step)
            time.sleep(0.02)
        run.params({"lr": 1})
        run.artifact(tmp_path / "metrics.json")
        if moment == "at the end":
            threading.Timer(1.0, come_back).start()
        else:
            come_back()
    (found,) = kept(server).values()
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "1"}
    assert points(server, run.id, "train/itc") == list(range(20))
    assert [a.path for a in MlflowClient(server.uri).list_artifacts(run.id)] == ["metrics.json"]


def test_a_server_that_is_away_at_the_beginning_gets_the_run_later(server: Server, monkeypatch):
    (server.folder / "away").write_text("503", encoding="utf-8")
    with tracking.start_run("pretrain") as run:
        assert run.url == ""
        run.metrics({"train/itc": 1.0}, 0)
        (server.folder / "away").unlink()
    (found,) = kept(server).values()
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/itc": 1.0})
    assert run.url.startswith(server.uri)
    monkeypatch.setenv("BLIP_MLFLOW_UI", "https://mlflow.example/")
    assert run.url.startswith("https://mlflow.example/#/experiments/")


def test_the_work_does_not_wait_for_a_server_that_hangs(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "ANSWER_SECONDS", 0.5)
    (server.folder / "hung").touch()
    began = time.monotonic()
    with tracking.start_run("pretrain") as run:
        assert time.monotonic() - began < 30, "not MLflow's own 120 seconds"
        run.metrics({"train/itc": 1.0}, 0)
        os.waitpid(os.fork() or os._exit(0), 0)  # loader workers are forked
        (server.folder / "hung").unlink()
    (found,) = kept(server).values()
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"train/itc": 1.0})


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_server_does_not_take_in_time_is_sent_later(
    server: Server, monkeypatch, caplog, tmp_path: Path, begun: bool
):
    monkeypatch.setenv("BLIP_TRACKING_PATIENCE", "0.5")
    monkeypatch.setenv("BLIP_GROUP", "group")
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(runs.log, "propagate", True)
    if not begun:
        (server.folder / "away").write_text("503", encoding="utf-8")
    with tracking.start_run("pretrain", key="k", tags={"revision": "abc"}) as run:
        (server.folder / "away").write_text("503", encoding="utf-8")
        run.params({"lr": 1})
        run.metrics({"train/itc": float("nan")}, 3)
        run.artifact(tmp_path / "metrics.json")
    (path,) = (tmp_path / "runs" / "unsent").iterdir()
    (line,) = {record.message for record in caplog.records if str(path) in record.message}
    assert f"python -m blip.tracking {path}" in line
    assert "\n" not in line
    with pytest.raises(TrackingError, match="is unavailable"):
        send_unsent(path)
    assert list(path.parent.iterdir()) == [path]
    (server.folder / "away").unlink()
    send_unsent(path)
    assert not path.exists()
    found = kept(server)
    assert set(found) == {"group", "pretrain"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["pretrain"].data.params == {"lr": "1"}
    assert points(server, found["pretrain"].info.run_id, "train/itc") == [3]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("mlflow", "System"))]


def test_a_model_is_registered_by_a_server_that_comes_back(server: Server, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1")
    with tracking.start_run("register") as run:
        (server.folder / "away").write_text("503", encoding="utf-8")
        threading.Timer(1.0, (server.folder / "away").unlink).start()
        assert tracking.register_model(run, tmp_path / "model", "waited-for", {"tr1": 1.0}) == 1
    assert MlflowClient(server.uri).get_model_version("waited-for", "1").run_id == run.id


@pytest.mark.parametrize("password", ["secretword", "p@ss:w/rd", "100%25?#"])
def test_user_and_password_of_the_address_open_the_door_and_are_never_written(
    server, monkeypatch, caplog, tmp_path, password
):
    (server.folder / "password").write_text(f"ann:{password.replace('%25', '%')}", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("http://", f"http://ann:{password}@"))
    tracking.server.mlflow_client.cache_clear()
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with tracking.start_run("pretrain") as run:
        run.params({"lr": 1})
        run.artifact(tmp_path / "metrics.json")
    assert password not in run.url
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("http://", "http://ann:wrongword@"))
    tracking.server.mlflow_client.cache_clear()
    with pytest.raises(TrackingError, match="401") as error, tracking.start_run("pretrain"):
        pass
    assert "wrongword" not in str(error.value)
    server.stop()
    with pytest.raises(TrackingError, match="does not answer") as error, tracking.start_run("pretrain"):
        pass
    assert "wrongword" not in str(error.value)
    assert not any("word" in record.message for record in caplog.records)
    server.start()
    (server.folder / "password").unlink()
    (found,) = kept(server).values()
    assert (found.info.status, found.data.params) == ("FINISHED", {"lr": "1"})


STEP = """
import sys, time
from blip import tracking
with tracking.start_run(sys.argv[1], key=f"key of '{sys.argv[1]}'") as run:
    run.metrics({"a": 1.0})
    print(run.id, flush=True)
    time.sleep(60)
"""


def step(name: str, number: int) -> int:
    """Runs a step, ends its process by a signal, and returns the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, name], stdout=subprocess.PIPE, env={**os.environ, "MLFLOW_RUN_NAME": name}
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    return process.wait(30)


def test_a_step_that_is_ended_leaves_no_run_that_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "an 'odd' group")
    assert step("terminated", signal.SIGTERM) == 128 + signal.SIGTERM
    assert step("interrupted", signal.SIGINT) != 0
    assert {name: run.info.status for name, run in kept(server).items()} == dict.fromkeys(kept(server), "KILLED")
    assert step("killed", signal.SIGKILL) == -signal.SIGKILL
    assert kept(server)["killed"].info.status == kept(server)["an 'odd' group"].info.status == "RUNNING"
    monkeypatch.setenv("BLIP_GROUP", "a later group")
    monkeypatch.setattr("blip.tracking.orphans.GROUP_GRACE", 0.0)
    with tracking.start_run("later"):
        pass
    found = {name: run.info.status for name, run in kept(server).items()}
    assert found["killed"] == found["an 'odd' group"] == "KILLED"
    assert found["later"] == found["a later group"] == "FINISHED"


def test_a_run_of_a_living_process_or_of_another_system_goes_on(server: Server):
    with tracking.start_run("first") as run:
        assert run.id
        mlflow = MlflowClient(server.uri)
        foreign = mlflow.create_run(mlflow.get_run(run.id).info.experiment_id, run_name="foreign").info.run_id
        with tracking.start_run("second"):
            pass
        assert {name: run.info.status for name, run in kept(server).items()} == {
            "first": "RUNNING",
            "foreign": "RUNNING",
            "second": "FINISHED",
        }
        mlflow.set_tag(run.id, "process", "elsewhere 1 1")
        mlflow.set_tag(run.id, "alive", str(int(time.time() - 3600)))
        with tracking.start_run("third"):
            pass
        assert kept(server)["first"].info.status == "KILLED"
        mlflow.set_terminated(foreign)
    assert kept(server)["first"].info.status == "FINISHED"


@pytest.mark.parametrize(
    "name", ["bob's", 'the "best"', """both ' and " """, "100 %", "a/b", "größe", "a`b\\c", "x" * 300]
)
def test_odd_names_of_experiments_groups_steps_and_keys_work(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"experiment {name}")
    monkeypatch.setenv("BLIP_GROUP", name)
    monkeypatch.setenv("MLFLOW_RUN_NAME", f"step {name}")
    for fail in (True, False):
        try:
            with tracking.start_run("pretrain", key=name) as run:
                if fail:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            failed = run.id
    assert run.id == failed
    assert {name: run.info.status for name, run in kept(server).items()} == {
        name: "FINISHED",
        f"step {name}": "FINISHED",
    }


@pytest.mark.parametrize("name", ["bob's model", 'the "best"', "100 %", "v1.2", "größe"])
@pytest.mark.usefixtures("server")
def test_odd_names_of_models_work(tmp_path: Path, name: str):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(name.encode())
    with tracking.start_run("register") as run:
        for _ in range(2):
            assert tracking.register_model(run, tmp_path / "model", name, {"tr1": 1.0}) == 1
        tracking.promote(name, 1)
    assert tracking.champion(name)[:2] == (1, {"tr1": 1.0})
    version = tracking.champion(name).version
    fetched = fetch(name, version, tmp_path / "copy")
    assert (fetched / "model.safetensors").read_bytes() == name.encode()


@pytest.mark.parametrize("name", ["a/b", "a:b", "", "  ", ".."])
@pytest.mark.usefixtures("server")
def test_names_of_models_that_mlflow_refuses_are_refused_before(tmp_path: Path, name: str):
    with pytest.raises(TrackingError, match="choose another name"), tracking.start_run("register") as run:
        tracking.register_model(run, tmp_path, name, {})
    with pytest.raises(TrackingError, match="choose another name"):
        tracking.champion(name)


def test_a_deleted_experiment_is_named_with_the_way_out(server: Server):
    with tracking.start_run("pretrain"):
        pass
    mlflow = MlflowClient(server.uri)
    experiment = mlflow.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    mlflow.delete_experiment(experiment.experiment_id)
    way_out = r"is deleted; restore it \(.*restore --experiment-id.*MLFLOW_EXPERIMENT_NAME"
    with pytest.raises(TrackingError, match=way_out) as error, tracking.start_run("pretrain"):
        pass
    assert "\n" not in str(error.value)
    mlflow.restore_experiment(experiment.experiment_id)
    with tracking.start_run("pretrain"):
        pass


def test_a_run_shows_its_data_and_its_command(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        sys, "argv", ["/usr/lib/python/blip/cli.py", "train", "pretrain", "--store", "s3://key:word@bucket"]
    )
    data = [tracking.DataInput("web", "0123456789abcdef" * 4, "s3://bucket/web", "training", 120)]
    with tracking.start_run("pretrain", tags={"revision": "3f2a1b0"}, inputs=data) as run:
        pass
    found = kept(server)["pretrain"]
    (shown,) = found.inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest, shown.dataset.source_type) == (
        "web",
        ("0123456789abcdef" * 4)[:36],
        "s3",
    )
    assert shown.dataset.source == '{"uri": "s3://bucket/web"}'
    assert {tag.key: tag.value for tag in shown.tags} == {"mlflow.data.context": "training"}
    assert found.data.tags["mlflow.source.name"] == "blip train pretrain --store s3://***@bucket"
    assert found.data.tags["mlflow.source.git.commit"] == "3f2a1b0"
    assert run.id == found.info.run_id


def test_a_refused_record_ends_run_group_and_threads(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "group")
    with pytest.raises(TrackingError, match=r"no\$name"), tracking.start_run("at the end") as run:
        run.metrics({"no$name": 1.0, "a": 1.0})
    with pytest.raises(TrackingError, match=r"no\$name"), tracking.start_run("meanwhile") as run:
        note_for_ever(run)
    found = kept(server)
    assert {name: run.info.status for name, run in found.items()} == dict.fromkeys(
        ("group", "at the end", "meanwhile"), "FAILED"
    )
    assert found["at the end"].data.metrics == {"a": 1.0}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("mlflow", "System"))]


def note_for_ever(run: tracking.Run) -> None:
    run.metrics({"no$name": 1.0, "a": 1.0})
    while True:
        run.metrics({"a": 1.0})
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["it's", "100 %", "a#b", "ü b", "a'b\"c", "a\\b", "a\nb"])
def test_a_folder_of_any_name_holds_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_server: Server, name: str
):
    monkeypatch.delenv("BLIP_GROUP", raising=False)
    shutil.copytree(one_server.folder, tmp_path / name, ignore=shutil.ignore_patterns("port", "artifacts"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of this folder")
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with tracking.start_run("pretrain") as run:
        run.artifact(tmp_path / "metrics.json")
    assert [a.path for a in MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).list_artifacts(run.id)] == ["metrics.json"]
    assert list((tmp_path / name).rglob("metrics.json"))


@pytest.mark.parametrize("name", ["a?b", "a%20b", "%E4"])
def test_a_folder_that_the_address_of_a_file_cannot_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name}/mlflow.db")
    with pytest.raises(SettingError, match="use another folder") as refused, tracking.start_run("pretrain"):
        pass
    assert user_error(refused.value) == (str(refused.value), EXIT_CONFIG)
    assert not (tmp_path / name).exists()
