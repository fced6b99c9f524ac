import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip.cli import app
from blip.cli.mistakes import mount_point, user_error
from blip.config import EXIT_CONFIG, presets, stages
from blip.tracking import TrackingError
from blip.training.engine import NonFiniteError
from blip.workers.local_pool import WorkerError


def blip(*arguments: object) -> tuple[int, str, str]:
    """Runs a verb; returns its exit code, output and errors."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_every_verb_is_found_without_loading_what_it_needs():
    code = """
import sys
from typer.main import get_command
from blip.cli import app
print(*get_command(app).commands, *({"torch", "pydantic", "numpy", "mlflow", "transformers"} & {*sys.modules}))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [
        "caption",
        "match",
        "ask",
        "ingest",
        "capfilt",
        "select",
        "write-tars",
        "cache-features",
        "train",
        "make-frozen",
        "evaluate",
        "register",
        "import",
        "export",
        "fetch-weights",
        "init",
        "doctor",
        "summary",
    ]


def test_a_wrong_preset_is_one_line_and_an_exit_code_that_says_not_to_try_again(tmp_path):
    code, _, errors = blip(
        "ingest", "shapes", "--preset", "shape", "--out", tmp_path / "data", "--store", tmp_path / "store"
    )
    assert code == EXIT_CONFIG
    assert errors.startswith(f"blip: preset 'shape' is neither one of: {', '.join(presets())}; nor a .yaml file")
    assert errors.count("\n") == 1


def test_a_wrong_key_names_the_choices(tmp_path):
    code, _, errors = blip(
        "ingest",
        "shapes",
        "--preset",
        "shapes",
        "--set",
        "per_shrd=3",
        "--out",
        tmp_path / "data",
        "--store",
        tmp_path / "store",
    )
    assert code == EXIT_CONFIG
    assert "unknown key per_shrd; did you mean per_shard? choices: data, per_shard, tokenizer, vocab_size" in errors


def test_ingest_tells_its_figures_as_json(tmp_path):
    sizes = [f"data.world.{split}={count}" for split, count in {"gold": 6, "web": 8, "test": 4}.items()]
    settings = [word for size in sizes for word in ("--set", size)]
    code, said, _ = blip(
        "ingest", "shapes", "--json", "--preset", "shapes", *settings, "--out", tmp_path / "data", "--store", tmp_path
    )
    assert code == 0
    assert json.loads(said)["splits"]["gold"]["samples"] == 6
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"gold.json", "web.json", "test.json", "tokenizer"}


def test_summary_shows_before_and_after(tmp_path):
    change = {"before": 0.5, "after": 0.93}
    kept = {"precision": 0.93, "recall": 0.84, "kept": 0.45}
    ranks = {"tr1": 1.2, "tr5": 5.0, "tr10": 9.6, "ir1": 1.0, "ir5": 5.2, "ir10": 9.1}
    captions = {"true": 0.4, "cider": 0.6, "bleu4": 0.2}
    figures = {
        "noise": {"web": change, "synthetic": change},
        "capfilt": {"web": kept, "synthetic": kept},
        "retrieval": {"before": ranks, "after": ranks},
        "caption": {"before": captions, "after": captions},
        "registered": True,
    }
    (tmp_path / "summary.json").write_text(json.dumps(figures), encoding="utf-8")
    code, said, _ = blip("summary", tmp_path / "summary.json")
    assert code == 0
    assert "50% of the web texts were true, 93% of those kept" in said


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates a file, an empty folder, and invalid or empty JSON files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gold.json").write_text("{}", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"no picture")
    (tmp_path / "damaged.pth").write_text("PK", encoding="utf-8")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "empty.json").write_text("", encoding="utf-8")
    (tmp_path / "latin.json").write_bytes(b'{"a": "M\xfcller"}')
    return tmp_path


TRAIN = "train pretrain --preset shapes"
CAPFILT = "capfilt --preset shapes --captioner folder --filter folder"
MISTAKES = {
    "ingest shapes --out new": f"--preset is missing: one of {', '.join(presets())}, or a .yaml file",
    "ingest shapes --preset shapes": "Missing option '--out'",
    "ingest shapes --preset shapes --out file": "--out file: Not a directory",
    "ingest shapes --preset shapes --out file/new": "--out file/new: Not a directory",
    "ingest shapes --preset shapes --out link/new": "--out link/new: ",
    "ingest shapes --preset shapes --out new --store file": "--store file: Not a directory",
    "ingest shapes --preset shapes --out new --store file/store": "--store file/store: Not a directory",
    "ingest shapes --preset shapes --out /proc/new": "--out /proc/new: ",
    f"ingest shapes --preset shapes --out {'n' * 300}": "File name too long",
    "ingest shapes --preset none.yaml --out new": "configuration none.yaml: no such file",
    "ingest shapes --preset file --out new": "preset 'file' is neither one of",
    "ingest shapes --preset broken.json --out new": "configuration broken.json is not YAML",
    "ingest shapes --preset latin.json --out new": "configuration latin.json is not UTF-8",
    "ingest shapes --preset shapes --out new --set": "requires an argument",
    "ingest shapes --preset shapes --out new --set per_shard": "must read key.subkey=value",
    "ingest shapes --preset shapes --out new --set per_shard=.inf": "per_shard: Input should be a finite number",
    "ingest shapes --preset shapes --out s3://bucket/x": "--out s3:/bucket/x: must be a place of this machine (what",
    "ingest shapes --preset shapes --out new --store gs://bucket": "--store gs://bucket: gs:// is not written to; name",
    "caption picture.png --model folder --out hf://a/b.csv": "hf:/a/b.csv: must be a place of this machine",
    "write-tars gold --data data --out gs://bucket/x": "--out gs://bucket/x: gs:// is not written to; name a folder",
    "nothing": "No such command 'nothing'",
    "train nothing --preset shapes --data data --out new": (
        f"there is no stage 'nothing'; choices: {', '.join(stages())}"
    ),
    "train capfilt --preset shapes --data data --out new": ("stage 'capfilt' is not a training stage; choices: blip2_"),
    f"{TRAIN} --data none --out new": "--data none: No such file or directory",
    f"{TRAIN} --data file --out new": "--data file: Not a directory",
    f"{TRAIN} --data data --out file": "--out file: Not a directory",
    f"{TRAIN} --data folder --out new": "--data folder: has no manifest (gold.json, web.json, ...); name the",
    f"{TRAIN} --data data --out new": "",
    f"{TRAIN} --data data --out new --init none": "--init none: No such file or directory",
    f"{TRAIN} --data data --out new --init folder": "",
    f"{TRAIN} --data data --out new --processes -1": "Invalid value for '--processes'",
    f"{TRAIN} --data data --out new --profile file": "--profile file: Not a directory",
    f"{TRAIN} --data data --out new --figures folder": "--figures folder: is a folder, not a file",
    f"{TRAIN} --data data --out new --figures none/none/figures.json": "",
    f"{CAPFILT} --data folder --out new": "",
    f"{CAPFILT} --data nowhere --out new": "",
    "select --data folder --out new --page folder": "--page folder: is a folder, not a file",
    "select --data folder --out new": "has no scores.json",
    "capfilt --data folder --out new --captioner folder": "--preset is missing",
    "capfilt --preset shapes --data folder --out new --captioner none": "--captioner none: No such file or directory",
    "evaluate --preset shapes --model none --data data --out new": "--model none: No such file or directory",
    "evaluate --preset shapes --model file --data data --out new": "model file: a file of weights ends in",
    "evaluate --preset shapes --model folder --data data --out new": "",
    "register blip --model folder --before none.json --after other.json": (
        "--before none.json: No such file or directory"
    ),
    "register blip --model folder --before folder --after other.json": "--before folder: Is a directory",
    "register blip --model folder --before broken.json --after other.json": "",
    "register blip --model folder --before empty.json --after other.json": "",
    "register blip --model folder --before other.json --after other.json": "",
    "register blip --model folder --before latin.json --after other.json": "",
    "caption": "Missing argument 'images'. See blip caption --help.",
    "caption picture.png --model none --out new.csv": "--model none: No such file or directory, and no hub name as",
    "caption picture.png --model folder --out new.txt": "--out new.txt: must end in .jsonl, .csv, .parquet",
    "caption none --model folder --out new.csv": "none: no such file or folder; name images, folders",
    "caption file --model folder --out new.csv": "file: is no image (",
    "caption picture.png --model folder --out new.csv": "model folder: is no model folder, looked for config.json",
    "caption picture.png --model damaged.pth --out new.csv": "not a file that torch has written, or damaged",
    "caption picture.png --model folder --out new.csv --set bacth=3": "unknown key bacth; did you mean batch?",
    "caption picture.png --model folder --out new.csv --set captions=3 --set decoding.type=beam": "use nucleus",
    "match picture.png text": "Missing option '--model'",
    "match none.png text --model folder": "none.png: no such file or folder",
    "match picture.png text --model folder --out folder": "--out folder: is a folder, not a file",
    "import none.pth --out new": "model 'none.pth': no such file or folder, nor a hub name",
    "import damaged.pth --out file": "--out file: Not a directory",
    "cache-features none --data data --out new --preset shapes": "there is no stage 'none'; choices: ",
    "cache-features pretrain --data data --out new --preset shapes": "has no frozen image encoder",
    "cache-features blip2_stage1 --data data --out new --preset shapes --batch 0": "greater than or equal to 1. See",
    "make-frozen --out new --preset nothing": "preset 'nothing' is neither one of",
    "make-frozen --out new --preset shapes --set steps=0": "unknown key steps; choices: miniatures",
    "fetch-weights --preset base": "Missing option '--to'",
    "fetch-weights --preset base --to new --stage none": "stage 'none' is unknown; choices: ",
    "fetch-weights --preset base --to new --pipeline none": "'none' is not one of 'bootstrap', 'blip2'",
    "write-tars none --data data --out new": "source 'none': data/none.json does not exist; name a manifest",
    "write-tars gold --data data --out new --per-shard 0": "greater than or equal to 1",
    "evaluate --model folder --data data --out new --preset shapes --task none": "Input should be 'retrieval', ",
    f"{CAPFILT} --filter folder --data folder --out new": "there is a filter 'filter' already; name this one as clip=",
    "ingest --preset base --out new": "set data.gold=..., data.web=..., data.test=... to where the tars lie",
    "init folder": "folder: is a folder, not a file",
    "init file": "file: the name of a file of settings ends in .yaml",
    "init new.yaml --preset nothing": "preset 'nothing' is neither one of",
    "init new.yaml --set nothing.x=1": "must begin with its stage, one of: ingest, ",
    "doctor nothing": "there is no check 'nothing'; choices: python, ",
    "export --model none --out new --format hf": "--model none: No such file or directory",
    "export --model folder --out new --format hf": "",
    "export --model folder --out new --format onnx": "Invalid value for '--format'",
    "summary": "runs/latest/summary.json: No such file or directory",
    "summary folder": "folder: Is a directory",
    "summary broken.json": "summary broken.json is not a run's summary",
    "summary empty.json": "summary empty.json is not a run's summary",
    "summary other.json": "summary other.json is not a run's summary",
    "summary latin.json": "summary latin.json is not a run's summary",
    "summary file": "summary file is not a run's summary",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code_that_says_not_to_try_again(places: Path, words: str):
    before = sorted(path.name for path in places.iterdir())
    code, _, errors = blip(*words.split())
    assert code == EXIT_CONFIG, errors
    assert errors.startswith("blip: ")
    assert errors.count("\n") == 1
    assert MISTAKES[words] in errors
    assert len(errors) < 500
    assert "new" not in before


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no disk that is always full")
def test_a_full_disk_is_named():
    with pytest.raises(OSError, match="No space left") as full:
        Path("/dev/full").write_text("x", encoding="utf-8")
    full.value.filename = "/dev/full"
    assert user_error(full.value) == (
        f"/dev/full: No space left on device on the disk at {mount_point(Path('/dev'))}",
        1,
    )


@pytest.mark.parametrize(
    "error",
    [
        TrackingError("no answer"),
        TrackingError("the file cannot be opened: No space left on device"),
        WorkerError("w ended with code 1"),
        NonFiniteError(3, ["itc"], ["a"]),
    ],
)
def test_work_that_failed_for_a_known_reason_is_one_line_and_may_be_tried_again(error: Exception):
    assert user_error(error) == (str(error), 1)


def test_an_error_of_the_program_keeps_its_traceback():
    assert user_error(KeyError("a")) is None
    assert user_error(ValueError("a")) is None
