"""Every command of README.md and k8s/README.md is run on tiny data, or listed with the reason why not."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from threading import Thread

import boto3
import numpy as np
import pytest
import yaml
from kubeflow import Kubeflow
from PIL import Image
from tiny_models import captioner, config, model_folder, text_filter, tokenizer

from blip.launch.resources import PLACEMENTS, Resources
from blip.models.med import MED
from blip.runs.export import export
from blip.runs.found import with_source
from blip.runs.stages import BOOTSTRAP, PIPELINES, load_stages, overrides_for, without_placement
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.model_folder import load_task
from blip.tasks.pretraining import Pretraining, PretrainingConfig

ROOT = Path(__file__).parents[2]
NOT_RUN = {
    "blip capfilt --preset blip2_capfilt ": "tests/capfilt/test_blip2_capfilt.py runs it and the three below",
    "blip select --preset blip2_capfilt ": "the same",
    "blip train blip2_stage": "the same",
    "make run-pipeline DATA=photos ": "tests/pipelines/test_data_parameter.py runs it",
    "make run-pipeline     #": "tests/end_to_end runs it, in minutes",
    "make run-pipeline PRESET=benchmarks/pictures.yaml ": "an hour; tests/end_to_end/test_real_pictures.py is short",
    ".venv/bin/python benchmarks/pictures.py": "fetches packages by npm; tests/benchmarks makes small ones",
    ".venv/bin/python -m benchmarks.folders": "fetches packages of Debian; tests/benchmarks makes small ones",
    "make run-pipeline PIPELINE=blip2_capfilt ": "tests/end_to_end/test_whole_blip2.py runs it, in minutes",
    "make run-pipeline PIPELINE=downstream": "tests/end_to_end/test_whole_downstream.py runs it, in minutes",
    "make test ": "it is this",
    "make mlflow ": "a server that runs until it is stopped",
    "make image ": "needs docker; tests/k8s/test_image.py builds the image where there is one",
    "docker push ": "needs docker and a registry",
    "kind ": "makes a cluster",
    "gcloud ": "makes a cluster, for money",
    "eksctl ": "makes a cluster, for money",
    "aws ": "makes a bucket, for money",
    "AUTOSCALER=": "a version for the command that follows",
    "for kind in ": "makes node pools, for money",
    "for account in ": "needs a cluster on EKS",
    "kubectl ": "needs a cluster; tests/k8s checks all manifests, tests/cluster applies them to a real API server",
    ".venv/bin/blip doctor kfp": "asks a cluster's API server; test_submitting.py has one in memory",
    ".venv/bin/blip fetch-weights ": "asks the hub; tests/runs/test_fetch_weights.py has one on the loopback",
    "export AWS_": "the tests have keys of their own",
    "export BLIP_IMAGE=": "names the image of a registry",
    "export KFP_HOST=": "the tests have a server of their own",
    "PIPELINES=": "versions for the kubectl commands that follow",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=": "needs MLflow's server on a cluster",
}
"""The prefixes of commands that are not run, and the reasons."""

TINY = {
    "extends": "shapes",
    "pretrain, captioner, filter": {"epochs": 0.5, "loader": {"batch": 8}},
    "capfilt": {"stream": {"batch": 8}, "workers": 1},
}
"""Replaces the README's preset, whose models need GPUs and the hub."""


COMMAND = re.compile(
    r"(make|blip|kubectl|kind|gcloud|eksctl|aws|docker|for|export|pip|python) +[-$\w]|\.venv/|[A-Z_]+="
)


def commands(path: Path) -> list[str]:
    """Returns the commands of a page."""
    return commands_of(path.read_text(encoding="utf-8"))


def commands_of(page: str) -> list[str]:
    """Returns the commands in a page's indented blocks, continued lines joined, without other text."""
    text = re.sub(r"\\\n\s+", "", page)
    text = re.sub(
        r"^ +for .*?^ +done$", lambda loop: re.sub(r"\n\s+", " ", loop[0]), text, flags=re.MULTILINE | re.DOTALL
    )
    lines = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [line for line in lines if COMMAND.match(line)]


def is_run(command: str) -> bool:
    return not any(command.startswith(beginning) for beginning in NOT_RUN)


README, K8S = commands(ROOT / "README.md"), commands(ROOT / "k8s" / "README.md")
VERBS = [command for command in README if command.startswith("blip ") and is_run(command)]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Clean a bucket now")[2].partition("\n## ")[0]
RELEASED = commands_of(SECTION)
"""The commands that need no training."""
SUBMITTED = [command for command in README + K8S if is_run(command) and command not in VERBS]


def test_the_first_example_needs_no_training():
    assert README[0] == RELEASED[0]
    assert re.match(r"blip capfilt .*--captioner Salesforce/\S+ --filter Salesforce/", README[0])
    assert not any(command.startswith(("blip train", "make")) for command in RELEASED)


def test_the_pages_have_commands_and_each_reason_still_has_one():
    assert len(VERBS) >= 7
    assert len(SUBMITTED) >= 6
    assert all(re.search(r"KFP_HOST=|pipelines submit", command) for command in SUBMITTED), SUBMITTED
    unused = [beginning for beginning in NOT_RUN if not any(command.startswith(beginning) for command in README + K8S)]
    assert unused == []


def tar_of(first: int, count: int) -> bytes:
    """Writes a tar as img2dataset does: `000000012.jpg`, `.txt` and `.json`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(first, first + count):
            colour = np.random.default_rng(number).integers(0, 256, 3).tolist()
            image = io.BytesIO()
            Image.new("RGB", (64, 48), tuple(colour)).save(image, "JPEG")
            text = f"a {['red', 'green', 'blue'][number % 3]} picture of number {number % 7}"
            told = {
                "key": f"{number:09d}",
                "caption": text,
                "url": f"http://a/{number}.jpg",
                "width": 64,
                "height": 48,
                "status": "success",
            }
            for ending, data in (
                ("jpg", image.getvalue()),
                ("txt", text.encode()),
                ("json", json.dumps(told).encode()),
            ):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the tiny preset in place of the page's, and the program of this checkout on the path."""
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "blip").write_text(f'#!/bin/sh\nexec {sys.executable} -m blip.cli "$@"\n', encoding="utf-8")
    (folder / "bin" / "blip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BLIP_TRACKING", "off")
    monkeypatch.delenv("TMPDIR", raising=False)


def run(command: str, folder: Path) -> str:
    """Runs a command of the page; nothing but its preset, which is as large as the paper's, is another."""
    tiny = command.replace("--preset base", "--preset base.yaml")
    done = subprocess.run(["bash", "-c", tiny], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{tiny}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.usefixtures("s3")
def test_the_readmes_way_without_training_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
    for i in range(42):
        bucket.put_object(Key=f"web/{i:05d}.tar", Body=tar_of(200 + 2 * i, 2))
    prepare(tmp_path, monkeypatch)
    # folders in place of the models on the hub, which has them at the paper's size
    for name, task in {"blip-image-captioning-base": captioner(), "blip-itm-base-coco": text_filter()}.items():
        export(model_folder(task, tmp_path / "ours" / name), tmp_path / "Salesforce" / name, "hf")
    export(model_folder(wide(), tmp_path / "ours" / "wide"), tmp_path, "official")
    (tmp_path / "model.pth").rename(tmp_path / "model_base_capfilt_large.pth")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photos" / "one.jpg")
    try:
        shown = {command.split()[1]: run(command, tmp_path) for command in RELEASED}
    finally:
        bucket.objects.delete()
        bucket.delete()
    assert "images: 84\n" in shown["capfilt"]
    assert (tmp_path / "clean" / "bootstrapped.json").is_file()
    assert len((tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    heading, *rows = shown["match"].splitlines()
    assert heading.split() == ["match", "similarity", "text"]
    assert {row.split(maxsplit=2)[2] for row in rows} == {"a red bicycle", "two dogs on a beach"}
    assert load_task(tmp_path / "released").cfg.type == "pretraining"


def wide() -> Pretraining:
    """A model whose heads have the usual width, so that its file tells all of its sizes."""
    cfg = config()
    wider = {part: getattr(cfg, part).model_copy(update={"width": 128, "heads": 2}) for part in ("vision", "text")}
    return Pretraining(
        PretrainingConfig(alignment=AlignmentConfig(queue=1)), MED(cfg.model_copy(update=wider)), tokenizer()
    )


@pytest.mark.usefixtures("s3")
def test_the_readmes_own_data_recipe_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
    tars = [
        ("coco/00000.tar", 0, 16),
        ("val/00000.tar", 100, 6),
        *((f"web/{i:05d}.tar", 200 + 2 * i, 2) for i in range(42)),
    ]
    for key, first, count in tars:
        bucket.put_object(Key=key, Body=tar_of(first, count))
    prepare(tmp_path, monkeypatch)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.new("RGB", (64, 48), (20 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.jpg")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"a red of {i}")
    try:
        for command in VERBS:
            if command not in RELEASED:
                run(command, tmp_path)
    finally:
        bucket.objects.delete()
        bucket.delete()
    assert json.loads((tmp_path / "data" / "web.json").read_text(encoding="utf-8"))["shards"][41]["name"].endswith(
        "00041.tar"
    )
    assert list((tmp_path / "exported").rglob("model.safetensors"))
    assert (tmp_path / "stricter" / "bootstrapped.json").is_file()
    assert (tmp_path / "scores" / "metrics.json").is_file()


@pytest.mark.parametrize(("host", "verb"), [("", "run"), ("KFP_HOST=http://h", "submit")])
def test_make_hands_on_what_is_set(host: str, verb: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KFP_HOST", raising=False)
    installed = [f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed"]
    given = [
        "PRESET=base",
        "PLACEMENT=a100",
        "SET=store=s3://b pretrain.epochs=2",
        "CACHE=off",
        "AGAIN=plan",
        *host.split(),
    ]
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *installed, "run-pipeline", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    settings = "--set 'preset=base' --set 'placement=a100' --set 'store=s3://b' --set 'pretrain.epochs=2'"
    expected = f"-m pipelines {verb} {settings} --no-cache --again 'plan'"
    assert " ".join(done.stdout.split()).endswith(expected)


@pytest.mark.parametrize("command", SUBMITTED)
def test_what_is_submitted_is_taken_and_its_settings_are_sound(command: str, monkeypatch: pytest.MonkeyPatch):
    server = Kubeflow()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name in (
        "KFP_TOKEN",
        "KFP_NAMESPACE",
        "KFP_CONTEXT",
        "KFP_CA_FILE",
        "KUBERNETES_SERVICE_HOST",
        "KF_PIPELINES_SA_TOKEN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KFP_HOST", server.uri)
    venv = sys.prefix
    here = re.sub(r"KFP_HOST=\S+", f"KFP_HOST={server.uri}", command).replace(".venv/bin/", f"{venv}/bin/")
    here = re.sub(r"^make ", f"make VENV={venv} --old-file={venv}/.installed ", here)
    try:
        done = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{here}\n{done.stderr[-2000:]}"
        (made,) = server.runs + server.recurring
    finally:
        server.shutdown()
        server.server_close()
    given = made["runtime_config"]["parameters"]
    source = [f"ingest.{override}" for override in with_source(given.get("source", "shapes"), [])]
    monkeypatch.setenv(PLACEMENTS, (ROOT / "k8s/overlays/gke/placements.yaml").read_text(encoding="utf-8"))
    Resources.of(given.get("placement", "cpu"), overrides_for("placement", given.get("overrides", [])))
    own = without_placement(given.get("overrides", []))
    # retraining has no source: it looks where the settings say
    settings = own if "schedule" in command else [*source, *own]
    pipeline = re.search(r"PIPELINE=(\w+)", command)
    names = PIPELINES.get(pipeline[1], BOOTSTRAP) if pipeline else BOOTSTRAP
    load_stages(given.get("preset", "shapes"), settings, names)
