"""The report shows all that was measured, even if other figures are missing."""

import copy
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tiny_models import samples

from blip.config import validate
from blip.report.capfilt_figures import save_pictures
from blip.report.summary import Summary
from blip.runs.context import RunContext
from blip.runs.outputs import StepOutput
from blip.runs.report import STEP_PURPOSES, BootstrapOutputs, BootstrapResults, report
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


def outputs(tmp_path: Path, figures: dict[str, Any]) -> StepOutput:
    """Publishes an output for each step, with the files of `kept` for selection, and returns that of the gate."""
    store = str(tmp_path / "store")
    kinds = get_type_hints(BootstrapResults)

    def publish(name: str, **inputs: str) -> str:
        result = validate(kinds[name.replace("-", "_")], figures[name], name)
        folder = tmp_path / "kept" if name in ("select", "ingest") else tmp_path / "nothing"
        return StepOutput.publish(store, name, folder, result, inputs).uri

    data = publish("ingest")
    first = publish("pretrain", data=data)
    models = {name: publish(name, data=data, init=first) for name in ("captioner", "filter")}
    kept = publish("select", scored=publish("capfilt", data=data, **models))
    final = publish("pretrain-again", data=kept)
    scores = {
        name: publish(f"evaluate-{name}", data=data, model=model)
        for name, model in (("before", first), ("after", final))
    }
    return StepOutput.load(publish("register", model=final, **scores))


def made(tmp_path: Path, figures: dict[str, Any]) -> tuple[str, Summary]:
    """Returns the page and the summary."""
    found = BootstrapOutputs.behind(outputs(tmp_path, figures))
    with found.select.folder() as kept:
        summary, page = report(RunContext(revision="abc1234"), found.results(), kept=kept)
    return page, summary


@pytest.mark.parametrize("left_out", [(), ("captioning",), ("retrieval",), ("captioning", "retrieval")])
def test_what_an_evaluation_left_out_is_left_out_of_the_report(tmp_path, figures, left_out):
    for step in ("evaluate-before", "evaluate-after"):
        figures[step]["scores"] = {
            task: found for task, found in figures[step]["scores"].items() if task not in left_out
        }
    page, summary = made(tmp_path, figures)
    assert (summary.caption is None) == ("captioning" in left_out)
    assert (summary.retrieval is None) == ("retrieval" in left_out)
    assert ("CIDEr" in page) == ("captioning" not in left_out)
    assert "retrieval.mean is nan" in page


def test_digests_and_alarms_of_the_steps_stand_on_the_page(tmp_path, figures):
    figures["pretrain"] |= {"digest": "a" * 64, "alarms": [{"name": "captions_alike", "step": 40}]}
    page, _ = made(tmp_path, figures)
    assert "a" * 64 in page
    assert f"web {'d' * 64}, gold {'d' * 64}" in page
    assert "captions alike at step 40" in page


def test_each_result_stands_where_its_step_belongs(tmp_path, figures):
    for number, name in enumerate(STEP_PURPOSES):
        figures[name]["seconds"] = float(number)
    _, summary = made(tmp_path, figures)
    assert summary.seconds == {**{name: float(i) for i, name in enumerate(STEP_PURPOSES)}, "total": 45.0}


def test_runs_are_compared_by_at_most_ten_finite_figures(tmp_path, figures):
    _, summary = made(tmp_path, figures)
    found = summary.compared()
    assert found == {
        "web texts kept": 0.5,
        "captions kept": 0.5,
        "registered": 0.0,
        "hours": 10 / 3600,
        "text R@1": 10.0,
        "text R@1 before": 10.0,
        "image R@1": 10.0,
        "CIDEr": 0.5,
        "CIDEr before": 0.5,
    }
    figures["evaluate-after"]["scores"]["captioning"]["cider"] = float("nan")
    page, summary = made(tmp_path, figures)
    assert found.keys() - summary.compared().keys() == {"CIDEr"}
    assert "nan" not in re.sub(r"data:[^\"]+", "", page).replace("retrieval.mean is nan", "")
    summary.save(tmp_path / "summary.json")
    assert repr(Summary.load(tmp_path / "summary.json")) == repr(summary)
