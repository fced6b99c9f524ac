"""`blip doctor` on machines and services that lack something."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import boto3
import pytest
import torch
from typer.testing import CliRunner

from blip.cli import app
from blip.doctor import machine
from blip.storage import FolderStore


def doctor(*words: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Returns the exit code, and the findings by what they are of."""
    done = CliRunner().invoke(app, ["doctor", "--json", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KFP_HOST", "MLFLOW_TRACKING_URI", "BLIP_WEIGHTS", "BLIP_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def test_all_is_checked_in_the_way_that_people_read_and_nothing_is_left_behind(tmp_path: Path):
    line = [sys.executable, "-m", "blip.cli", "doctor"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for what in ("Python", "packages: train", "torch", "GPU", "Java", "memory", "/dev/shm", "store", "MLflow", "KFP"):
        assert f" {what} " in done.stdout
    assert "one of several writers wins" in done.stdout
    assert [*tmp_path.iterdir()] == []


def test_a_check_that_there_is_not_names_those_that_there_are():
    done = CliRunner().invoke(app, ["doctor", "gpus"])
    assert done.exit_code == 42
    assert "there is no check 'gpus'; choices: python, packages, torch" in done.stderr


def test_a_store_that_cannot_be_written_is_a_fault(tmp_path: Path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    code, found = doctor("store", "--store", tmp_path / "file" / "store")
    assert (code, found["store"]["state"]) == (42, "fault")
    assert "cannot be written" in found["store"]["found"]
    assert found["store"]["remedy"] == "name a folder that you may write to, or s3://bucket/prefix, by --store"


def test_a_store_without_conditional_writes_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def put_new(self: FolderStore, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    monkeypatch.setattr(FolderStore, "put_new", put_new)
    code, found = doctor("store", "--store", tmp_path / "store")
    assert (code, found["store"]["state"]) == (42, "ok")
    assert found["store: conditional writes"]["state"] == "fault"
    assert "6 of 6 writers won" in found["store: conditional writes"]["found"]


@pytest.mark.usefixtures("s3")
def test_a_bucket_is_tried_as_well():
    bucket = boto3.resource("s3").create_bucket(Bucket="examined")
    code, found = doctor("store", "--store", "s3://examined/prefix")
    assert (code, {finding["state"] for finding in found.values()}) == (0, {"ok"})
    assert [*bucket.objects.all()] == []
    bucket.delete()
    code, found = doctor("store", "--store", "s3://examined/prefix")
    assert (code, found["store"]["state"]) == (42, "fault")


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.mark.parametrize(("free", "state", "code"), [(1e9, "fault", 42), (9e9, "warning", 1), (90e9, "ok", 0)])
def test_the_worst_disk_makes_the_exit_code(monkeypatch: pytest.MonkeyPatch, free: float, state: str, code: int):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(0, 0, int(free)))
    exit_code, found = doctor("disks")
    assert exit_code == code
    assert {finding["state"] for finding in found.values()} == {state}
    assert ("TMPDIR" in found["disk: temporary files"]["remedy"]) == (code > 0)


def test_a_small_dev_shm_says_how_to_make_it_larger(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("blip.data.shared_memory.free_bytes", lambda: 64_000_000)
    code, found = doctor("shm")
    assert (code, found["/dev/shm"]["state"]) == (1, "warning")
    assert "--shm-size" in found["/dev/shm"]["remedy"]


def test_a_gpu_that_torch_cannot_use_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 570.1\nGCC version\n", encoding="utf-8")
    monkeypatch.setattr(machine, "NVIDIA", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code, found = doctor("torch")
    assert (code, found["GPU"]["found"]) == (1, "torch is built without CUDA (NVRM version: 570.1)")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "newer driver" in doctor("torch")[1]["GPU"]["remedy"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in doctor("torch")[1]["GPU"]["remedy"]


def test_an_extra_that_is_there_in_part_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "is_installed", lambda name: name not in ("duckdb", "kubernetes"))
    code, found = doctor("packages")
    assert code == 1
    assert found["packages: train"]["found"] == "without duckdb"
    assert found["packages: train"]["remedy"].endswith("pip install 'blip-bootstrap[train]'")
    assert found["packages: cluster"]["state"] == "note"


def test_an_mlflow_that_does_not_answer_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret-word@127.0.0.1:9")
    code, found = doctor("mlflow")
    assert (code, found["MLflow"]["state"]) == (42, "fault")
    assert "does not answer" in found["MLflow"]["found"]
    assert "BLIP_TRACKING=off" in found["MLflow"]["remedy"]
    assert "secret-word" not in json.dumps(found)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    assert doctor("mlflow")[1]["MLflow"]["state"] == "note"


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/apis/v2beta1/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_kubeflow_pipelines_answers_or_does_not(monkeypatch: pytest.MonkeyPatch):
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KFP_HOST", f"http://127.0.0.1:{server.server_port}/")
    code, found = doctor("kfp")
    server.shutdown()
    server.server_close()
    assert (code, found["KFP"]["state"]) == (0, "ok")
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    code, found = doctor("kfp")
    assert (code, found["KFP"]["state"]) == (42, "fault")
    assert "correct KFP_HOST" in found["KFP"]["found"]


def test_an_empty_mirror_says_how_it_is_filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("BLIP_WEIGHTS", str(tmp_path))
    code, found = doctor("weights")
    assert (code, found["weights"]["state"]) == (1, "warning")
    assert found["weights"]["remedy"].startswith("blip fetch-weights ")
