"""The report of BLIP-2: a self-contained HTML page."""

from pydantic import Field

from blip.config import Config
from blip.report.blip2_summary import LACKING, Blip2Summary, blip2_headline, blip2_rows
from blip.report.bootstrap_page import ReportStep, Selection, loss_charts, picture, step_graph
from blip.report.charts import line_chart
from blip.report.rendering import page_template
from blip.results import Point


class Said(Config):
    """What a language model said of an image, and whether it is right, if known."""

    by: str
    text: str
    right: bool | None = None


class Shown(Config):
    """A test image with a caption of people, and what the models said."""

    image: bytes
    reference: str
    said: tuple[Said, ...]


class Blip2Report(Config):
    """The content of the page."""

    summary: Blip2Summary
    title: str = "BLIP-2"
    revision: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    gates: tuple[str, ...] = ()
    """The reason of each gate's decision."""
    features: str = ""
    """What kept features of images saved the first stage."""
    steps: tuple[ReportStep, ...] = ()
    answers: dict[str, dict[str, list[Point]]] = Field(default_factory=dict)
    """Share of questions answered right over the steps of each second stage, in percent, by language model and step."""
    selection: Selection = Selection()
    """What CapFilt scored and kept, if it is a part of the pipeline."""
    shown: tuple[Shown, ...] = ()
    bad: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Samples left out, by place and reason."""


def blip2_html(report: Blip2Report) -> str:
    """Renders the self-contained page, with styles, charts and pictures."""
    return page_template("blip2_page.html").render(
        report=report,
        headline=blip2_headline(report.summary),
        rows=blip2_rows(report.summary),
        lacking=LACKING[report.summary.lacking],
        graph=step_graph(report.steps),
        names={step.name: i for i, step in enumerate(s for s in report.steps if s.curves)},
        losses=loss_charts(report.steps),
        answers=[(name, line_chart(curves)) for name, curves in report.answers.items()],
        picture=picture,
    )
