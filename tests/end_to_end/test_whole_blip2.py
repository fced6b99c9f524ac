"""Both pipelines of BLIP-2, as a person starts them, at a size at which nothing is learnt but everything happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import captioner, model_folder, text_filter

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


def run(pipeline: str, root: Path, sizes: dict[str, object]) -> str:
    """Runs a pipeline, and returns what it said."""
    settings = [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "pipelines", "run", pipeline, "--root", str(root), *settings]
    done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [word for word in ("Warning", "WARN", "INFO", "executor", "Traceback") if word in done.stdout]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The root of a finished run, and what it said."""
    root = tmp_path_factory.mktemp("blip2") / "runs"
    return root, run("blip2", root, SIZES)


def test_every_step_is_done_and_the_table_compares_both_ways(finished):
    _, said = finished
    assert said.count("✓") == 16
    assert "without stage 1" in said


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


def test_capfilt_writes_and_selects_what_both_stages_learn_from_and_shares_the_frozen_models(
    finished: tuple[Path, str], tmp_path: Path
):
    root, _ = finished
    models = {"captioner": captioner(), "filter": text_filter()}
    given = {role: model_folder(model, tmp_path / role) for role, model in models.items()}
    said = run("blip2_capfilt", root, SIZES | {"capfilt.workers": 1} | given)
    assert said.count("✓") == 22
    assert "without CapFilt" in said
    assert len(list((root / "store" / "frozen").glob("*/frozen.json"))) == 1
    summary = json.loads((root / "latest" / "summary.json").read_text())
    assert summary["lacking"] == "capfilt"
    texts = summary["selected"]["texts"]
    assert texts["before"] == 0.5
    assert 0 <= texts["after"] <= 1
    assert set(summary["seconds"]) > {
        "captioner",
        "capfilt",
        "select",
        "stage1-web",
        "stage2-t5-web",
        "evaluate-opt-web",
    }
    page = (root / "latest" / "report.html").read_text()
    assert "What is CapFilt worth?" in page
    assert page.count('class="card"') > 0
    trained = [
        json.loads(path.read_text())
        for path in (root / "store" / "made" / "blip2_stage1").glob("*/files/output/run.json")
    ]
    assert [sources["sources"] for sources in trained].count(["gold", "web"]) == 2
