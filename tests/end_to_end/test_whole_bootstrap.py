"""The whole bootstrap as a person starts it, at a size that learns nothing but runs every step."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import blip
from blip.runs.outputs import FOLDER

SIZES = {
    "ingest.data.world.gold": 96,
    "ingest.data.world.web": 192,
    "ingest.data.world.test": 32,
    "ingest.per_shard": 64,
    "pretrain.epochs": 2,
    "pretrain.checkpoint.every": 2,
    "captioner.epochs": 1,
    "filter.epochs": 1,
    "capfilt.workers": 1,
}


class Run:
    """`python -m pipelines run` in a folder of its own."""

    def __init__(self, root: Path):
        self.root = root
        settings = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
        self.command = [sys.executable, "-m", "pipelines", "run", "bootstrap", "--root", str(root), *settings]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=self.root.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self) -> tuple[int, str]:
        run = self.start()
        said, _ = run.communicate(timeout=600)
        return run.returncode, said

    def output(self, step: str) -> Path:
        """Returns the folder in the store that a step made."""
        (record,) = self.root.glob(f"bootstrap-*/{step}/executor_output.json")
        uri = json.loads(record.read_text())["parameterValues"]["Output"]
        return Path(uri, "files", FOLDER)

    def kill(self, step: str) -> str:
        """Runs until a step shows progress, kills its process, and returns the output."""
        run = self.start()
        while run.poll() is None and not any(
            path.stat().st_size for path in self.root.glob(f"bootstrap-*/{step}/progress.jsonl")
        ):
            time.sleep(0.05)
        holder = json.loads((self.root / ".lock").read_text())
        os.killpg(int(holder["step"].partition(" ")[0]), signal.SIGKILL)
        said, _ = run.communicate(timeout=600)
        assert run.returncode == 1, said
        return said


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Run, str, str]:
    """A run killed in its first training and run again, with both outputs."""
    run = Run(tmp_path_factory.mktemp("bootstrap") / "runs")
    killed = run.kill("pretrain")
    code, said = run.finish()
    assert code == 0, said
    return run, killed, said


def test_a_killed_step_is_named_and_the_next_run_goes_on_after_the_last_that_finished(finished):
    _, killed, said = finished
    assert "pretrain failed: ended by SIGKILL" in killed
    assert "[ 2/12] ingest" in said
    assert [line for line in said.splitlines() if "done before" in line] == [
        line for line in said.splitlines() if "] ingest" in line
    ]
    assert said.count("✓") == 11


def test_a_killed_training_ends_as_one_that_was_left_alone(finished, tmp_path):
    run, *_ = finished
    data, model = run.output("ingest"), run.output("pretrain") / "model.safetensors"
    settings = [
        word
        for name, value in SIZES.items()
        if name.startswith("pretrain.")
        for word in ("--set", f"{name[9:]}={value}")
    ]
    places = [
        "--preset",
        "shapes",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "model"),
        "--store",
        str(tmp_path / "store"),
    ]
    alone = [sys.executable, "-m", "blip.cli", "train", "pretrain", *places, *settings]
    subprocess.run(alone, check=True, capture_output=True, env={**os.environ, "BLIP_TRACKING": "off"})
    expected, found = load_file(tmp_path / "model" / "model.safetensors"), load_file(model)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert expected.keys() == found.keys()


def test_the_summary_holds_every_figure(finished):
    run, *_ = finished
    summary = json.loads((run.root / "latest" / "summary.json").read_text())
    assert set(summary) == {"noise", "capfilt", "retrieval", "caption", "seconds", "registered"}
    assert set(summary["retrieval"]["after"]) == {"tr1", "tr5", "tr10", "ir1", "ir5", "ir10"}
    assert 0.3 < summary["noise"]["web"]["before"] < 0.7
    assert set(summary["seconds"]) > {
        "total",
        "ingest",
        "pretrain",
        "captioner",
        "filter",
        "capfilt",
        "pretrain-again",
        "register",
    }


def test_the_second_model_is_at_hand(finished):
    run, *_ = finished
    model = blip.load(run.root / "latest" / "model")
    assert {"caption", "match", "embed"} <= {*model.abilities}


def test_the_report_needs_no_network(finished):
    run, *_ = finished
    page = (run.root / "latest" / "report.html").read_text()
    assert "data:image/" in page
    assert 'src="http' not in page
    assert "<link" not in page


def test_a_finished_run_repeats_from_the_cache_and_shows_its_table_again(finished):
    run, _, first = finished
    before = (run.root / "latest" / "summary.json").read_bytes()
    began = time.monotonic()
    code, said = run.finish()
    assert code == 0
    assert time.monotonic() - began < 30
    assert said.count("done before") == 11
    table = said.splitlines()[13:]  # after the plan, which ran, and the other steps
    assert table == first.splitlines()[-len(table) :]
    assert (run.root / "latest" / "summary.json").read_bytes() == before


def test_only_words_for_people_are_said(finished):
    _, _, said = finished
    assert not [word for word in ("{", "Warning", "WARN", "INFO", "executor", "Traceback") if word in said]
