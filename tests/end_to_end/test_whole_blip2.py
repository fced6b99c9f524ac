"""All of BLIP-2, as a person starts it, at a size at which nothing is learnt but everything happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = {
    "ingest.data.world.gold": 32,
    "ingest.data.world.web": 16,
    "ingest.data.world.test": 6,
    "frozen.miniatures": "{vision: {steps: 2, images: 16}, opt: {steps: 2, batch: 4}, t5: {steps: 2, batch: 4}}",
    **{f"blip2_{stage}.steps": 2 for stage in ("stage1", "stage2", "stage2_t5")},
    **{f"blip2_{stage}.loader.batch": 8 for stage in ("stage1", "stage2", "stage2_t5")},
}
KINDS = ("opt", "t5")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The root of a finished run, and what it said."""
    root = tmp_path_factory.mktemp("blip2") / "runs"
    settings = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "pipelines", "run", "blip2", "--root", str(root), *settings]
    run = subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return root, run.stdout


def test_every_step_is_done_and_the_table_compares_both_ways(finished):
    _, said = finished
    assert said.count("✓") == 16
    assert "without stage 1" in said
    assert not [word for word in ("Warning", "WARN", "INFO", "executor", "Traceback") if word in said]


def test_the_summary_holds_every_figure(finished):
    root, _ = finished
    summary = json.loads((root / "latest" / "summary.json").read_text())
    assert summary["type"] == "blip2"
    assert set(summary["models"]) == set(KINDS)
    for model in summary["models"].values():
        assert set(model["scores"]) == {"before", "after"}
        assert set(model["scores"]["after"]["accuracies"]) == {
            "colour",
            "ground",
            "number",
            "place",
            "shape",
            "size",
            "yes_no",
        }
        assert 10 < model["chance"] < 90
    assert set(summary["seconds"]) > {"total", "frozen", "stage1", "stage2-opt", "stage2-t5-alone", "evaluate-opt"}


def test_the_report_needs_no_network_and_names_the_frozen_models(finished):
    root, _ = finished
    page = (root / "latest" / "report.html").read_text()
    assert "data:image/" in page
    assert 'src="http' not in page
    made = json.loads(next((root / "store" / "frozen").glob("*/frozen.json")).read_text())
    assert set(made["digests"]) == {"vision", "opt", "t5"}
    assert all(digest in page for digest in made["digests"].values())


def test_models_name_their_frozen_parts_by_digest_and_do_not_hold_them(finished):
    root, _ = finished
    made = json.loads(next((root / "store" / "frozen").glob("*/frozen.json")).read_text())
    folders = [path.parent for path in (root / "store" / "made").glob("blip2_stage2*/*/files/output/config.json")]
    assert len(folders) == 4
    for folder in folders:
        model = json.loads((folder / "config.json").read_text())["model"]
        kind = model["language_model"]["source"].rpartition("/")[2]
        assert model["vision"]["digest"] == made["digests"]["vision"]
        assert model["language_model"]["digest"] == made["digests"][kind]
        assert (folder / "model.safetensors").stat().st_size < 2_000_000
