"""The page of the downstream tasks: scores beside those of who sees no image, and of the model before CapFilt."""

import re

from blip.report.downstream_page import downstream_html, loss_charts, task_sections
from blip.results import DownstreamResult

RESULT = DownstreamResult(
    scores={"vqa": {"accuracy": 80.0, "accuracy_colour": 90.0}, "dialog": {"mrr": 60.0, "mean_rank": 3.0}},
    first={"vqa": {"accuracy": 70.5}},
    baseline={"vqa": {"accuracy": 33.0, "accuracy_colour": 20.0}, "dialog": {"mrr": 15.0, "mean_rank": 12.0}},
    registered={"vqa": True, "dialog": False},
    reasons={"vqa@first": "not registered: a < b", "vqa": "registered as version 1", "dialog": "registered"},
    curves={"vqa": {"vqa": [(1, 2.0), (5, 0.5)], "loss": [(1, 2.0), (5, 0.5)]}, "dialog": {}},
    seconds_by_task={"vqa": 61.0, "dialog": 9.0},
)


def test_rows_have_the_gains_over_the_baseline_and_over_the_model_before_capfilt():
    vqa, dialog = task_sections(RESULT)
    assert (vqa.main.gain, vqa.main.change) == (47.0, 9.5)
    assert [row.name for row in vqa.rows] == ["accuracy", "accuracy_colour"]
    assert vqa.rows[1].change is None
    (rank,) = (row for row in dialog.rows if row.name == "mean_rank")
    assert rank.gain == 9  # a smaller one is better


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]


def test_the_only_loss_is_drawn_once():
    ((item, chart),) = loss_charts(RESULT)
    assert item == "vqa"
    assert [line.name for line in chart.lines] == ["vqa"]


def test_the_page_has_the_table_before_and_after_and_what_the_gate_said():
    page = downstream_html(RESULT)
    assert ["Visual question answering", "accuracy", "33", "70.5", "80", "+9.5"] in cells(page)
    assert ["accuracy_colour", "20", "", "90", "+70"] in cells(page)
    assert not [row for row in cells(page) if row[:2] == ["Visual dialog", "mrr"]]  # it has no model before CapFilt
    assert ["vqa@first", "not registered: a &lt; b", ""] in cells(page)
    assert ["vqa", "registered as version 1", "1:01 min"] in cells(page)
    assert "http" not in page.replace("http-equiv", "")
    assert "1 of 2 models passed the gate" in page  # the third is there to be compared
    assert re.findall(r'class="name (good|bad|)"', page) == ["", "good", "bad"]


def test_a_page_without_a_model_before_capfilt_has_no_such_table():
    page = downstream_html(RESULT.model_copy(update={"first": {}}))
    assert "before CapFilt" not in page
    assert ["accuracy", "33", "80", "+47"] in cells(page)
