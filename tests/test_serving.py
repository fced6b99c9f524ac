"""A registered model is served by MLflow: real requests to `mlflow models serve`, and images in every form."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import invocations
from tiny_models import both, captioner, model_folder, picture, text_filter

import blip
from blip.runs.context import RunContext
from blip.runs.register import register
from blip.serving import Service, image_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_folder(both(), tmp_path_factory.mktemp("models") / "model"))


def test_an_image_is_bytes_base64_or_a_path_and_no_address_unless_the_server_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = picture(0)
    (tmp_path / "a.png").write_bytes(data)
    encoded = base64.b64encode(data).decode()
    for form in (data, encoded, f"data:image/png;base64,{encoded}", str(tmp_path / "a.png")):
        assert image_bytes(form) == data
    for form in (
        base64.encodebytes(data).decode(),
        base64.urlsafe_b64encode(data).decode(),
    ):  # wrapped; for addresses
        assert image_bytes(form) == data
    assert image_bytes("A" * 400) == bytes(300)  # longer than the name of a file may be
    with pytest.raises(ValueError, match="BLIP_SERVE_URLS=1"):
        image_bytes("http://127.0.0.1:9/a.png")
    with pytest.raises(ValueError, match="neither base64 nor a file"):
        image_bytes("nowhere.png")
    with pytest.raises(ValueError, match="is int"):
        image_bytes(3)
    with PictureServer() as address:
        monkeypatch.setenv("BLIP_SERVE_URLS", "1")
        assert image_bytes(f"{address}/a.png") == data


class PictureServer:
    """A server of one picture on the loopback."""

    def __enter__(self) -> str:
        from http.server import BaseHTTPRequestHandler, HTTPServer
        from threading import Thread

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(picture(0))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_row_is_answered_by_what_the_model_can_do(tmp_path: Path):
    rows = pd.DataFrame({"image": [picture(1), picture(2)], "text": ["a small red circle", None]})
    captions = Service(blip.load(model_folder(captioner(), tmp_path / "captioner"))).predict(rows)
    assert [set(row) for row in captions] == [{"caption"}] * 2
    matcher = blip.load(model_folder(text_filter(), tmp_path / "filter"))
    (found,) = Service(matcher).predict(rows[:1])
    assert found["probability"] == pytest.approx(matcher.match(picture(1), "a small red circle")[0].probability)
    with pytest.raises(ValueError, match="row 1: the column text is empty"):
        Service(matcher).predict(rows)
    mixed = Service(blip.load(model_folder(both(), tmp_path / "both"))).predict(rows)
    assert [set(row) for row in mixed] == [{"probability", "similarity"}, {"caption"}]


@pytest.fixture
def registered(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a registry with a champion of the name `served`."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "BLIP_GROUP", "BLIP_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for when, value in (("before", 1.0), ("after", 2.0)):
        scores = {"split": "test", "scores": {"retrieval": {"mean": value, "ir1": 7.0}}}
        (tmp_path / f"{when}.json").write_text(json.dumps(scores))
    (folder / "run.json").write_text(json.dumps({"made_from": {"gold": "d1gest"}}))
    context = RunContext(preset="shapes", overrides=("gate=[retrieval.mean]", "licence=cc0"), revision="r1")
    files = {when: tmp_path / f"{when}.json" for when in ("before", "after")}
    assert register(context, "served", model=folder, **files).registered
    return uri


def test_the_registered_model_has_a_signature_an_example_and_a_card(registered: str, tmp_path: Path, folder: Path):
    mlflow.set_tracking_uri(registered)
    home = Path(mlflow.artifacts.download_artifacts("models:/served@champion", dst_path=str(tmp_path / "fetched")))
    card = (home / "README.md").read_text()
    for fact in ("d1gest", "Model: cc0", "| retrieval.ir1 | 7 |", "Intended use", "code r1", "split test"):
        assert fact in card
    model = mlflow.pyfunc.load_model("models:/served@champion")
    assert model.metadata.signature.inputs.input_names() == ["image", "text"]
    example = json.loads((home / "input_example.json").read_text())
    found = model.predict(pd.DataFrame(example["data"], columns=example["columns"]))
    assert set(found[0]) == {"probability", "similarity"}
    assert (home / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_wrong_request_is_answered_with_status_400_and_the_reason(registered: str):
    mlflow.set_tracking_uri(registered)
    model = mlflow.pyfunc.load_model("models:/served@champion")
    schema = model.metadata.get_input_schema()
    good = base64.b64encode(picture(3)).decode()
    rows = {
        "row 1: image 'nowhere.png' is neither base64 nor a file": [{"image": good}, {"image": "nowhere.png"}],
        "an image must be bytes, base64 or a path, is NoneType": [{"image": None, "text": "a"}],
        "an image must be bytes, base64 or a path, is list": [{"image": [1, 2], "text": "a"}],
        "image cannot be decoded": [{"image": base64.b64encode(b"no picture").decode(), "text": "a"}],
        "set BLIP_SERVE_URLS=1": [{"image": "http://127.0.0.1:9/a.png", "text": "a"}],
        "Model is missing inputs": [{"picture": good}],
        "the column text must hold texts, has int": [{"image": good, "text": 3}],
    }
    bodies = {reason: {"dataframe_records": given} for reason, given in rows.items()} | {"must": {"rows": []}}
    for reason, body in bodies.items():
        with pytest.raises(mlflow.MlflowException, match=reason) as refused:
            invocations(json.dumps(body), "application/json", model, schema)
        assert refused.value.get_http_status_code() == 400
        assert "Traceback" not in refused.value.serialize_as_json()


@pytest.mark.slow
def test_mlflow_serves_the_champion_over_http(registered: str, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@champion", "--env-manager"]
    command += ["local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": registered,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline and not answers(port):
                assert server.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
                time.sleep(1)
            (tmp_path / "a.png").write_bytes(picture(3))
            rows = [
                {"image": base64.b64encode(picture(3)).decode(), "text": "a small red circle"},
                {"image": str(tmp_path / "a.png"), "text": "a small red circle"},
            ]
            first, second = asked(port, rows)["predictions"]
            assert first == second
            assert 0 < first["probability"] < 1
            (caption,) = asked(port, [{"image": str(tmp_path / "a.png")}])["predictions"]
            assert isinstance(caption["caption"], str)
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(port, [{"image": "http://127.0.0.1:9/a.png", "text": "a"}])
            assert refused.value.code == 400
            said = refused.value.read().decode()
            assert "BLIP_SERVE_URLS" in said
            assert "Traceback" not in said
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200
    except OSError:
        return False


def asked(port: int, rows: list[dict]) -> dict:
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())
