"""All of the downstream pipeline, as a person starts it, at a size that learns nothing but runs every step."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip.data.tokenizer import Tokenizer
from blip.datasets.shapes import ShapesConfig, gold_samples
from blip.runs.config import RunConfig
from blip.runs.context import RunContext
from blip.runs.train import make_task
from blip.tasks.model_folder import save_model

TASKS = ("retrieval", "captioning", "vqa", "nlvr", "dialog")
SIZES = {"ingest.data.world.gold": 32, "ingest.data.world.test": 12, "ingest.per_shard": 16}

pytestmark = pytest.mark.slow


def run(root: Path, *settings: str, tasks: Sequence[str] = TASKS) -> subprocess.CompletedProcess[str]:
    sizes = SIZES | {f"{task}.epochs": 0.5 for task in tasks} | {f"{task}.loader.batch": 8 for task in tasks}
    given = [*(f"{name}={value}" for name, value in sizes.items()), *settings]
    command = [sys.executable, "-m", "pipelines", "run", "downstream", "--root", str(root)]
    command += [word for setting in given for word in ("--set", setting)]
    return subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=1500, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the bootstrap makes one, that has not learnt anything."""
    words = Tokenizer.train([text for sample in gold_samples(ShapesConfig(gold=50)) for text in sample.texts], 256)
    cfg = RunContext(preset="shapes").settings(RunConfig, "pretrain").with_tokenizer(words)
    folder = tmp_path_factory.mktemp("champion") / "model"
    save_model(make_task(cfg, words, None), folder)
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The root of a finished run of all tasks, and what it said."""
    root = tmp_path_factory.mktemp("downstream") / "runs"
    done = run(root, f"model={model}")
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


def test_every_step_of_every_task_is_done_and_scores_stand_beside_the_baseline(finished: tuple[Path, str]):
    root, said = finished
    assert said.count("✓") == 6 * len(TASKS) + 1
    assert not [word for word in ("Warning", "WARN", "INFO", "executor", "Traceback") if word in said]
    summary = json.loads((root / "latest-downstream" / "summary.json").read_text())
    judged = {*TASKS, "video_retrieval", "video_qa"}
    assert set(summary["scores"]) == set(summary["baseline"]) == judged
    assert set(summary["registered"]) == set(summary["seconds_by_task"]) == set(TASKS)
    assert "no image" in said
    page = (root / "latest-downstream" / "report.html").read_text()
    assert "Visual question answering" in page
    assert "before CapFilt" not in page


def test_each_task_has_a_registered_model_and_runs_in_one_mlflow(finished: tuple[Path, str]):
    root, _ = finished
    (file,) = root.rglob("mlflow.db")
    found = sqlite3.connect(file)
    champions = found.execute("select name from registered_model_aliases where alias = 'champion'").fetchall()
    assert {name for (name,) in champions} == {f"blip-{task}" for task in TASKS}
    statuses = {status for (status,) in found.execute("select status from runs")}
    assert statuses == {"FINISHED"}


def test_another_run_comes_from_the_cache_and_a_setting_of_one_task_runs_that_alone(
    finished: tuple[Path, str], model: Path
):
    root, _ = finished
    again = run(root, f"model={model}", "tasks=[vqa,nlvr]", "nlvr.seed=7", tasks=("vqa", "nlvr"))
    assert again.returncode == 0, again.stdout + again.stderr
    trained = [line for line in again.stdout.splitlines() if "fine-tune" in line and "learn the task" in line]
    assert ["done before" in line for line in trained] == [True, False]


def test_a_setting_that_no_task_reads_is_a_mistake(finished: tuple[Path, str], model: Path):
    root, _ = finished
    done = run(root, f"model={model}", "tasks=[vqa]")
    assert done.returncode == 42
    assert "is of retrieval, which tasks=[vqa] leaves out" in done.stdout
