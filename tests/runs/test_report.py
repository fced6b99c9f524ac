"""The report shows all that was measured, even if other figures are missing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import samples

from blip.report.capfilt_figures import save_pictures
from blip.runs.context import RunContext
from blip.runs.report import STEP_PURPOSES, report
from blip.runs.select import PICTURES
from blip.shards.writing import write_shards

UNKNOWN = {"before": None, "after": None}
RECALLS = dict.fromkeys(("tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "mean"), 10.0)
SPLIT = {"samples": 4, "shards": 1, "counts": {"no image": 2}, "digest": "d" * 64}


@pytest.fixture
def figures(tmp_path: Path) -> dict[str, Any]:
    """Figures of each step of a bootstrap without ground truth and curves, and its data folder."""
    kept = tmp_path / "kept"
    kept.mkdir()
    manifest = write_shards(samples(4), tmp_path / "shards", "test", 4)
    for name in ("test", "web", "bootstrapped"):
        manifest.save(kept / f"{name}.json")
    save_pictures((), kept / PICTURES)
    trained = {"steps": 4, "losses": {}, "curves": {}}
    evaluated = {"split": "test", "scores": {"retrieval": RECALLS, "captioning": {"cider": 0.5, "bleu4": 0.25}}}
    shares = {source: {"precision": None, "recall": None, "kept": 0.5} for source in ("web", "synthetic")}
    of_step = {
        "ingest": {"splits": {"web": SPLIT, "gold": SPLIT}, "vocabulary": 64},
        "capfilt": {"images": 4, "shards": 1},
        "select": {"noise": {"web": UNKNOWN, "synthetic": UNKNOWN}, "capfilt": shares, "threshold": 0.5},
        "evaluate-before": evaluated,
        "evaluate-after": copy.deepcopy(evaluated),
        "register": {"registered": False, "reason": "not registered: retrieval.mean is nan, which is no score"},
    }
    return {name: {"seconds": 1.0, **of_step.get(name, trained)} for name in STEP_PURPOSES}


def made(tmp_path: Path, figures: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The page, the card and the summary."""
    paths = {}
    for step, values in figures.items():
        paths[step] = str(tmp_path / f"{step}.json")
        Path(paths[step]).write_text(json.dumps(values))
    outs = [str(tmp_path / name) for name in ("page.html", "card.md", "summary.json")]
    page, card, summary = outs
    context = RunContext(revision="abc1234")
    report(context, paths, kept=tmp_path / "kept", page=page, card=card, summary=summary)
    page, card, summary = (Path(out).read_text() for out in outs)
    return page, card, json.loads(summary)


@pytest.mark.parametrize("left_out", [(), ("captioning",), ("retrieval",), ("captioning", "retrieval")])
def test_what_an_evaluation_left_out_is_left_out_of_the_report(tmp_path, figures, left_out):
    for step in ("evaluate-before", "evaluate-after"):
        figures[step]["scores"] = {
            task: found for task, found in figures[step]["scores"].items() if task not in left_out
        }
    page, card, summary = made(tmp_path, figures)
    assert (summary["caption"] is None) == ("captioning" in left_out)
    assert (summary["retrieval"] is None) == ("retrieval" in left_out)
    assert ("CIDEr" in card) == ("captioning" not in left_out)
    assert "retrieval.mean is nan" in page
    assert "retrieval.mean is nan" in card


def test_digests_and_alarms_of_the_steps_stand_on_the_page(tmp_path, figures):
    figures["pretrain"] |= {"digest": "a" * 64, "alarms": [{"name": "captions_alike", "step": 40}]}
    page, card, _ = made(tmp_path, figures)
    assert "a" * 64 in page
    assert f"web {'d' * 64}, gold {'d' * 64}" in page
    for text in (page, card):
        assert "captions alike at step 40" in text
