"""The report of the downstream tasks: each task's scores beside those of who sees no image, and before CapFilt."""

from typing import NamedTuple

from blip.report.charts import Chart, line_chart
from blip.report.rendering import page_template
from blip.results import DownstreamResult, gain

MAIN = {
    "retrieval": "mean",
    "captioning": "cider",
    "vqa": "accuracy",
    "nlvr": "accuracy",
    "dialog": "mrr",
    "video_retrieval": "ir1",
    "video_qa": "accuracy",
}
"""The score of each task that stands at the top."""
TITLES = {
    "retrieval": "Retrieval",
    "captioning": "Captioning",
    "vqa": "Visual question answering",
    "nlvr": "Statements about two images",
    "dialog": "Visual dialog",
    "video_retrieval": "Retrieval of videos, zero-shot",
    "video_qa": "Questions about videos, zero-shot",
}


class ScoreRow(NamedTuple):
    """A score of a task; None where it was not measured."""

    name: str
    baseline: float | None
    first: float | None
    """Of the model that started before CapFilt."""
    score: float | None
    """Of the model that started from the one that was given."""

    @property
    def gain(self) -> float | None:
        """By how much the score is better than that of who sees no image."""
        return self.better_than(self.baseline)

    @property
    def change(self) -> float | None:
        """By how much the score is better than before CapFilt."""
        return self.better_than(self.first)

    def better_than(self, other: float | None) -> float | None:
        return None if self.score is None or other is None else gain(self.name, self.score, other)


class TaskSection(NamedTuple):
    name: str
    title: str
    rows: list[ScoreRow]
    main: ScoreRow


def downstream_html(result: DownstreamResult, title: str = "Downstream tasks", revision: str = "") -> str:
    """Renders the self-contained page, with styles and charts."""
    return page_template("downstream_page.html").render(
        report={"title": title, "revision": revision},
        result=result,
        sections=task_sections(result),
        charts=loss_charts(result),
    )


def task_sections(result: DownstreamResult) -> list[TaskSection]:
    """Returns the scores of each task, in the order of `TITLES`."""
    sections = []
    for name, title in TITLES.items():
        columns = [scores.get(name, {}) for scores in (result.baseline, result.first, result.scores)]
        names = dict.fromkeys([*columns[2], *columns[1]])
        if names:
            rows = {score: ScoreRow(score, *(column.get(score) for column in columns)) for score in names}
            main = rows.get(MAIN[name]) or next(iter(rows.values()))
            sections.append(TaskSection(name, title, list(rows.values()), main))
    return sections


def loss_charts(result: DownstreamResult) -> list[tuple[str, Chart]]:
    """Returns a chart for each fine-tuning, with a line for each of its losses; their sum only if there are several."""
    charts = []
    for item, curves in result.curves.items():
        parts = {name: curve for name, curve in curves.items() if name != "loss"}
        charts += [(item, line_chart(parts if len(parts) == 1 else curves))] if curves else []
    return charts
