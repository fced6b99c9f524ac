"""Secrets are removed from messages, logs and tracebacks."""

import subprocess
import sys

import pytest

from blip.redaction import redact
from blip.storage import StoreError
from blip.storage.s3 import S3Store

CASES = {
    "http://ann:pw@mlflow:5000/api": "http://***@mlflow:5000/api",
    "http://ann:p%40ss@h and http://bob:x@g": "http://***@h and http://***@g",
    "http://ann:p@ss@h/a": "http://***@h/a",
    "mysql+pymysql://ann:pw@db:3306/mlflow?charset=utf8": "mysql+pymysql://***@db:3306/mlflow?charset=utf8",
    "s3://bucket/a@b and mail@example.org": "s3://bucket/a@b and mail@example.org",
    "https://h/a?X-Amz-Signature=abc&b=1": "https://h/a?X-Amz-Signature=***&b=1",
    "https://h/a?access_token=abc": "https://h/a?access_token=***",
    "{'Authorization': 'Basic YTpi'}": "{'Authorization': 'Basic ***'}",
}


@pytest.mark.parametrize("text", CASES)
def test_what_has_the_form_of_a_secret_is_hidden(text: str):
    assert redact(text) == CASES[text]


def test_what_the_environment_holds_in_secret_is_hidden_in_any_form(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:p/w?#' 1@host:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    assert redact("no scheme: ann:p/w?#' 1, key wJalrXUtnFEMI") == "no scheme: ***, key ***"
    assert redact("http://ann:p/w?#' 1@host:5000 falsefalse") == "http://***@host:5000 falsefalse"


def test_an_error_of_a_store_names_the_endpoint_without_its_password(monkeypatch: pytest.MonkeyPatch, s3: str):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://\*\*\*@127\.0\.0\.1:9") as error:
        S3Store(s3, attempts=1, timeout=0.5).get("key")
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:hunter2@no host")
    with pytest.raises(StoreError, match="correct AWS_ENDPOINT_URL") as error:
        S3Store(s3).get("key")
    assert "hunter2" not in str(error.value)


def test_logs_and_tracebacks_of_a_process_hide_it():
    code = """
from blip.logs import log, quiet
quiet()
log.warning("asked %s", "http://ann:hunter2@host")
try:
    raise ValueError("cause: http://ann:hunter2@host")
except ValueError as e:
    raise RuntimeError("http://ann:hunter2@host") from e
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.count("http://***@host") == 3
    assert "cause" in found.stderr
    assert "hunter2" not in found.stderr
