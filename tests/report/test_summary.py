from io import StringIO
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from blip.report.summary import Summary, headline, summary_rows, summary_table

FIGURES: dict[str, Any] = {
    "noise": {"web": {"before": 0.5, "after": 0.93}, "synthetic": {"before": 0.64, "after": 0.95}},
    "capfilt": {
        "web": {"precision": 0.93, "recall": 0.84, "kept": 0.45},
        "synthetic": {"precision": 0.95, "recall": 0.9, "kept": 0.6},
    },
    "retrieval": {
        "before": {"tr1": 1.2, "tr5": 5.0, "tr10": 9.6, "ir1": 1.0, "ir5": 5.2, "ir10": 9.1},
        "after": {"tr1": 28.4, "tr5": 61.0, "tr10": 77.0, "ir1": 27.1, "ir5": 60.2, "ir10": 76.1},
    },
    "caption": {
        "before": {"true": 0.41, "cider": 0.61, "bleu4": 0.22},
        "after": {"true": 0.72, "cider": 0.5, "bleu4": 0.22},
    },
    "seconds": {"total": 390.0, "ingest": 12.0},
    "registered": True,
}


def summary(**changed: Any) -> Summary:
    return Summary.model_validate(FIGURES | changed)


def test_a_summary_survives_its_file(tmp_path):
    summary().save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == summary()


def test_a_figure_that_is_missing_is_named():
    with pytest.raises(ValidationError, match=r"retrieval\.after"):
        summary(retrieval={"before": FIGURES["retrieval"]["before"]})


def test_rows_say_what_is_better_and_what_is_not():
    found = {(r.group, r.name): (r.before, r.after, r.change, r.better) for r in summary_rows(summary())}
    assert len(found) == 11
    assert found["True texts", "web"] == ("50.0%", "93.0%", "+43.0", True)
    assert found["Image retrieval", "R@1"] == ("1.0%", "27.1%", "+26.1", True)
    assert found["Captions", "CIDEr"] == ("0.610", "0.500", "-0.110", False)
    assert found["Captions", "BLEU-4"] == ("0.220", "0.220", "+0.000", None)


def test_the_headline_tells_a_rise_a_fall_and_what_is_not_known():
    assert headline(summary()) == "50% of the web texts were true, 93% of those kept; text R@1 rose from 1.2% to 28.4%."
    fallen = summary(retrieval={"before": FIGURES["retrieval"]["after"], "after": FIGURES["retrieval"]["before"]})
    assert "text R@1 fell from 28.4% to 1.2%" in headline(fallen)
    unknown = {"before": None, "after": None}
    assert headline(summary(noise={"web": unknown, "synthetic": unknown})) == (
        "Text R@1 rose from 1.2% to 28.4%; 45% of the web texts were kept."
    )


@pytest.mark.parametrize(("registered", "verdict"), [(True, "is the champion"), (False, "did not pass the gate")])
def test_the_table_shows_figures_and_verdict(registered, verdict):
    screen = Console(file=StringIO(), width=100)
    screen.print(summary_table(summary(registered=registered)))
    assert isinstance(screen.file, StringIO)
    shown = screen.file.getvalue()
    assert "Text retrieval, R@1       1.2%   28.4%    +27.2" in shown
    assert "web          45%         93%      84%" in shown
    assert verdict in shown
    assert "6.5 minutes" in shown


def test_a_task_that_was_left_out_has_no_rows_and_no_place_in_the_headline():
    without = summary(retrieval=None)
    assert not [row for row in summary_rows(without) if "retrieval" in row.group]
    assert headline(without).endswith("93% of those kept; CIDEr fell from 0.610 to 0.500.")
    assert not [row for row in summary_rows(summary(caption=None)) if row.group == "Captions"]
    assert "text R@1 rose" in headline(summary(caption=None))
    screen = Console(file=StringIO(), width=100)
    screen.print(summary_table(summary(caption=None)))
