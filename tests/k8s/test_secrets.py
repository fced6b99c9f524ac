"""Manifests, jobs and the compiled pipeline contain no secrets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rendered import K8S, OVERLAYS, build, needs_kubectl, secrets

from blip.launch import trainjob, workers
from blip.launch.trainjob import TrainJobConfig
from blip.launch.workers import WorkersConfig
from pipelines.__main__ import PIPELINES

CANARY = "canary-7d1f9c"
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")
LOOKS_SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}"  # an access key of AWS
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@$]+:[^/\s:@$]+@"  # user and password in a URI, unless by reference
    r"|(?i:(?:password|secret|token|secret[_-]?key)['\"]?\s*[:=]\s*['\"]?)(?!true\b|false\b)[A-Za-z0-9+/_-]{12,}"
)


@pytest.fixture(autouse=True)
def secrets_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, CANARY)


@pytest.mark.parametrize(
    "text",
    [
        "key: AKIAIOSFODNN7EXAMPLE",
        "uri: postgresql://mlflow:hunter2@postgres/mlflow",
        "password: hunter2hunter2",
        '"secret_key": "wJalrXUtnFEMIK7MDENG"',
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_would_be_found(text):
    assert LOOKS_SECRET.search(text)


def has_no_secret(text: str) -> None:
    assert CANARY not in text
    assert not (found := LOOKS_SECRET.search(text)), found


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_refer_to_secrets_and_hold_none(overlay):
    things = build(f"overlays/{overlay}")
    assert not [thing for thing in things if thing["kind"] == "Secret"]
    has_no_secret(yaml.safe_dump_all(things))


def test_examples_are_no_secrets():
    assert secrets()
    for example in yaml.safe_load_all((K8S / "base/secrets.example.yaml").read_text()):
        assert set(example["stringData"].values()) == {"REPLACE-ME"}


def test_jobs_refer_to_secrets_and_hold_none():
    asked = {"name": "job", "image": "example/blip:1", "env": {"NCCL_DEBUG": "WARN"}}
    training = TrainJobConfig.model_validate({**asked, "nodes": 2, "processes": 8, "handover": "s3://bucket/handover"})
    crew = WorkersConfig.model_validate({**asked, "workers": 4})
    for job in (
        trainjob.render_trainjob(training),
        workers.render_workers(crew),
        workers.render_workers(crew, indexed=False),
    ):
        has_no_secret(json.dumps(job))


def test_the_compiled_pipelines_refer_to_secrets_and_hold_none(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--out", str(tmp_path)], check=True, capture_output=True
    )
    compiled = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert set(compiled) == set(PIPELINES)
    for text in compiled.values():
        assert "secretAsEnv" in text
        has_no_secret(text)
