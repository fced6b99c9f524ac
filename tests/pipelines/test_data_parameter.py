"""`make run-pipeline DATA=path` finds out what the data are, chooses a preset by their size, and runs on them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from kubeflow import Kubeflow
from PIL import Image
from tiny_models import TEXTS

from blip.config import ConfigError
from blip.runs import choice
from blip.runs.choice import choose
from blip.runs.context import RunContext
from blip.runs.found import with_source
from blip.runs.ingest import ingest
from blip.runs.plan import plan
from pipelines.__main__ import find_pipeline, with_data
from pipelines.parameters import ParameterError

ROOT = Path(__file__).parents[2]
MAKE = ["make", "--no-print-directory", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed", "run-pipeline"]


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        blocks = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(TEXTS[i % len(TEXTS)])
    return folder


def test_a_preset_is_chosen_by_the_size_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "my photos", 4)
    found = choose([str(folder)])
    assert (found.source, found.preset) == (str(folder), "shapes")
    assert "preset shapes, for about 4 images" in found.said[-1]
    assert "4 images with texts beside them (.txt)" in found.said[1]
    monkeypatch.setattr(choice, "SIZES", {"shapes": 2, "small": 4})
    assert choose([str(folder)]).preset == "base"
    assert choose([str(folder)], "large").preset == "large"
    monkeypatch.setattr(choice, "SIZES", {"shapes": 2, "small": 5})
    assert choose([str(folder)]).preset == "small"
    (tmp_path / "t.csv").write_text(f"image,text\n{folder.name}/0.png,one\n")
    monkeypatch.chdir(tmp_path)
    several = choose([f"t.csv '{folder.name}'"])  # as a shell divides them
    assert json.loads(several.source) == [str(tmp_path / "t.csv"), str(folder)]
    assert with_source(several.source, [])[-1] == f"data.path={several.source}"
    with pytest.raises(ConfigError, match=r"DATA=shapes: names a kind of data, not a place; say SET=source=shapes"):
        choose(["shapes"])


def test_the_plan_and_the_ingestion_take_what_was_chosen(tmp_path: Path):
    one, other = photos(tmp_path / "one {a}", 6), photos(tmp_path / "other", 3)
    found = choose([str(one), str(other)])
    settings = ["ingest.data.split=0.5/0.5"]
    first = plan("blip", found.source, found.preset, settings)["ingest"]
    assert plan("blip", found.source, found.preset, settings)["ingest"] == first
    (other / "2.txt").write_text("another")
    assert plan("blip", found.source, found.preset, settings)["ingest"] != first
    context = RunContext(preset=found.preset, store=str(tmp_path / "store"), overrides=("data.split=0.5/0.5",))
    result = ingest(context, found.source, out=tmp_path / "data")
    assert result.splits["web"].samples + result.splits["test"].samples == 9


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*MAKE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_data_are_submitted_as_source_and_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("KFP_TOKEN", "KFP_NAMESPACE", "KFP_CONTEXT", "KFP_CA_FILE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    folder = photos(tmp_path / "photos", 4)
    server = Kubeflow()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        done = run(f"KFP_HOST={server.uri}", f"DATA={folder}", "SET=store=s3://bucket/blip ingest.data.split=0.5/0.5")
        assert done.returncode == 0, done.stderr[-2000:]
        (made,) = server.runs
    finally:
        server.shutdown()
        server.server_close()
    given = made["runtime_config"]["parameters"]
    assert given["source"] == str(folder)
    assert given["preset"] == "shapes"
    assert given["overrides"] == ["ingest.data.split=0.5/0.5"]
    assert "4 images with texts beside them (.txt)" in done.stdout


def test_the_time_of_the_trainings_is_told_before_they_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pipeline, folder = find_pipeline("bootstrap"), photos(tmp_path / "photos", 4)
    settings = ["pretrain.lead=null", "pretrain.epochs=null", "pretrain.steps=1000", "pretrain.loader.batch=64"]
    with_data(pipeline, settings, [str(folder)], time=True)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"four trainings see about 130,000 images, which takes about \d+ (minutes|hours)", said)


def test_mistakes_are_named_before_anything_runs():
    pipeline = find_pipeline("bootstrap")
    with pytest.raises(ParameterError, match=r"^/nowhere/at/all: nothing is there; name files, a folder"):
        with_data(pipeline, [], ["/nowhere/at/all"])
    with pytest.raises(ParameterError, match=r"^DATA names the data, and so does source=shapes: leave one out"):
        with_data(pipeline, ["source=shapes"], ["."])
    with pytest.raises(ParameterError, match=r"^DATA: the pipeline retrain takes no data"):
        with_data(find_pipeline("retrain"), [], ["."])


@pytest.mark.slow
def test_the_whole_bootstrap_runs_on_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos", 80)
    tiny = {
        "extends": "shapes",
        "pretrain, captioner, filter": {"epochs": 0.5, "loader": {"batch": 8}},
        "capfilt": {"stream": {"batch": 8}, "workers": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "pipelines", "run", "--data", "photos", "--set", "preset=tiny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "preset tiny.yaml, as said" in done.stdout
    assert (tmp_path / "runs" / "latest" / "report.html").is_file()
    assert str(folder) in done.stdout
