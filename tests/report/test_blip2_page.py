import re

import pytest

from blip.config import ConfigError
from blip.report.blip2_page import Blip2Report, Said, Shown, blip2_html
from blip.report.blip2_summary import (
    Answered,
    Blip2Summary,
    LanguageScores,
    blip2_headline,
    blip2_rows,
    blip2_table,
    read_values,
)
from blip.report.bootstrap_page import ReportStep
from blip.results import Change


def scores(true: float, accuracy: float) -> LanguageScores:
    return LanguageScores(true=true, cider=2 * true, accuracy=accuracy, accuracies={"colour": accuracy + 1})


def answered(before: float, after: float, registered: bool = True) -> Answered:
    change = Change(before=scores(0.2, before), after=scores(0.5, after))
    return Answered(scores=change, chance=31.0, registered=registered)


SUMMARY = Blip2Summary(
    models={"opt": answered(55.0, 72.0), "t5": answered(60.0, 58.5, registered=False)},
    seconds={"stage1": 40.0, "total": 200.0},
)


def test_the_table_has_each_language_model_without_and_with_the_first_stage():
    rows = {(row.group, row.name): (row.before, row.after, row.better) for row in blip2_rows(SUMMARY)}
    assert rows["OPT", "answers right"] == ("55.0%", "72.0%", True)
    assert rows["T5", "answers right"] == ("60.0%", "58.5%", False)
    assert rows["OPT", "… colour"] == ("56.0%", "73.0%", True)
    assert rows["OPT", "captions true"] == ("20.0%", "50.0%", True)
    assert "72% of the questions right (55% without the first stage, 31% by guessing)" in blip2_headline(SUMMARY)


def test_the_page_needs_nothing_but_itself_and_shows_what_was_said():
    steps = tuple(
        ReportStep(name=name, parents=parents, seconds=3.0, curves={"lm": [(1, 2.0), (2, 1.0)]})
        for name, parents in (("stage1", ()), ("stage2-opt", ("stage1",)), ("stage2-opt-alone", ()))
    )
    png = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"
        b"\x00\x00\x00\x0cIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef\x00\x00\x00\x00IEND\xaeB`\x82"
    )
    said = (Said(by="OPT", text="a <b>red</b> ring", right=True), Said(by="T5", text="a star", right=False))
    report = Blip2Report(
        summary=SUMMARY,
        gates=("registered as version 1 of blip2-opt", "not registered: vqa.accuracy is 58.5"),
        steps=steps,
        answers={"OPT": {"stage2-opt": [(20, 50.0), (40, 71.5)], "stage2-opt-alone": [(20, 40.0), (40, 63.5)]}},
        shown=(Shown(image=png, reference="a red ring on grey", said=said),),
    )
    page = blip2_html(report)
    assert 'src="http' not in page
    assert "<link" not in page
    assert "data:image/png;base64," in page
    assert "a &lt;b&gt;red&lt;/b&gt; ring" in page
    assert page.count('class="truth yes"') == page.count('class="truth no"') == 1
    assert "not registered: vqa.accuracy is 58.5" in page
    assert "Is the first stage needed?" in page
    assert "OPT, answers right in % over steps" in page
    assert "stage2-opt-alone 63.5%" in page
    assert len(re.findall(r'class="line s\d"', page)) == 5, "three losses, and answers of two second stages"


def test_a_run_whose_test_images_have_no_questions_has_a_page_too(tmp_path):
    def without(side: LanguageScores) -> LanguageScores:
        return side.model_copy(update={"accuracy": None, "accuracies": {}})

    models = {
        kind: model.model_copy(
            update={
                "chance": None,
                "scores": Change(before=without(model.scores.before), after=without(model.scores.after)),
            }
        )
        for kind, model in SUMMARY.models.items()
    }
    summary = SUMMARY.model_copy(update={"models": models})
    assert blip2_headline(summary).startswith(
        "OPT describes images with a CIDEr of 1.000 (0.400 without the first stage"
    )
    page = blip2_html(Blip2Report(summary=summary, steps=(), shown=()))
    assert "Guessing the most frequent answer" not in page
    assert "OPT accuracy" not in summary.compared()
    summary.save(tmp_path / "summary.json")
    assert Blip2Summary.of(read_values(tmp_path / "summary.json"), tmp_path / "summary.json") == summary


def test_a_summary_is_read_and_shown_again(tmp_path):
    path = tmp_path / "summary.json"
    SUMMARY.save(path)
    assert Blip2Summary.of(read_values(path), path) == SUMMARY
    assert blip2_table(SUMMARY)
    assert SUMMARY.compared() == {
        "registered": 0.0,
        "OPT CIDEr": 1.0,
        "OPT accuracy": 72.0,
        "OPT accuracy alone": 55.0,
        "T5 CIDEr": 1.0,
        "T5 accuracy": 58.5,
        "T5 accuracy alone": 60.0,
        "hours": 200 / 3600,
    }


@pytest.mark.parametrize("text", ["no json", "[1]"])
def test_another_file_is_no_summary(tmp_path, text):
    (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a run's summary"):
        read_values(tmp_path / "summary.json")
