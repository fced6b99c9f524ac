"""The report: a whole bootstrap on one page that needs no network, and in short for places that take Markdown."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from pydantic import Field

from blip.config import Config
from blip.data.images import MOST_PIXELS, decode
from blip.report.charts import Chart, Graph, graph, histogram, line_chart
from blip.report.rendering import page_template
from blip.report.summary import Summary, headline, summary_rows
from blip.results import MatchHistogram, Point, Source

BINS = 20
THUMBNAIL = 256
"""A picture's longest side on the page, in pixels."""
CRISP = 64
"""Pictures up to this size are drawn pixel by pixel."""


class ReportStep(Config):
    """A step of the pipeline and what is known of it."""

    name: str
    purpose: str = ""
    parents: tuple[str, ...] = ()
    """Names of the steps whose outputs it read."""
    seconds: float | None = None
    curves: dict[str, list[Point]] = Field(default_factory=dict)
    """(step, value) by loss."""
    params: dict[str, Any] = Field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    digest: str = ""
    """Of what it made: a manifest or a model."""
    mlflow: str = ""
    """The address or the id of its run."""


class ScoredText(Config):
    """A text, the filter's p(match) and what became of it."""

    text: str
    match: float | None
    kept: bool
    reason: str = ""
    """Why it was dropped, if not for its score."""
    true: bool | None = None


class Picture(Config):
    """An image with its texts; `image` is an encoded file."""

    key: str
    image: bytes
    web: tuple[ScoredText, ...]
    synthetic: tuple[ScoredText, ...]

    def texts(self, source: Source) -> tuple[ScoredText, ...]:
        return self.web if source == "web" else self.synthetic


class Gallery(Config):
    title: str
    note: str
    pictures: tuple[Picture, ...]


class Described(Config):
    """A test image, a person's caption, and the captions of both models with their truth, if known."""

    image: bytes
    reference: str
    before: str
    after: str
    before_true: bool | None = None
    after_true: bool | None = None


class BootstrapReport(Config):
    """All that the page shows."""

    summary: Summary
    title: str = "Bootstrap"
    revision: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    """Said under the headline: data, preset, date, the champion so far."""
    gate: str = ""
    """Why the new model was registered, or was not."""
    steps: tuple[ReportStep, ...] = ()
    threshold: float | None = None
    histograms: tuple[MatchHistogram, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    described: tuple[Described, ...] = ()
    bad: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Samples or texts left out, counted by reason, for each place where they were found."""


def galleries(pictures: Sequence[Picture], source: Source = "web", most: int = 6) -> tuple[Gallery, ...]:
    """Pictures by the score of their first text of a source: kept and dropped, surest and least sure; then what was decided wrongly."""
    judged = [(p, p.texts(source)[0]) for p in pictures if p.texts(source) and p.texts(source)[0].match is not None]
    judged.sort(key=lambda pair: -(pair[1].match or 0.0))
    kept = [p for p, text in judged if text.kept]
    dropped = [p for p, text in judged if not text.kept]
    chosen = [
        ("Kept, surest", f"The {source} texts with the highest p(match).", kept[:most]),
        ("Kept, least sure", "Just above the threshold.", kept[most:][::-1][:most]),
        ("Dropped, least sure", "Just below the threshold.", dropped[:most]),
        ("Dropped, surest", "The lowest p(match).", dropped[most:][::-1][:most]),
        (
            "Kept, and false",
            "What the filter let through.",
            [p for p, text in judged if text.kept and text.true is False][:most],
        ),
        (
            "Dropped, and true",
            "What the filter took for noise.",
            [p for p, text in judged if not text.kept and text.true][::-1][:most],
        ),
    ]
    found = (
        Gallery(title=f"{source.capitalize()}: {title.lower()}", note=note, pictures=tuple(some))
        for title, note, some in chosen
    )
    return tuple(g for g in found if g.pictures)


def bootstrap_html(report: BootstrapReport) -> str:
    """The page, self-contained: styles, charts and pictures are inside."""
    names = {step.name: i for i, step in enumerate(s for s in report.steps if s.curves)}
    return page_template("bootstrap_page.html").render(
        report=report,
        headline=headline(report.summary),
        rows=summary_rows(report.summary),
        graph=step_graph(report.steps),
        names=names,
        losses=loss_charts(report.steps),
        histograms=[(s, chart_of(s, report.threshold)) for s in report.histograms],
        kinds={block.kind for s in report.histograms for block in chart_of(s, None).blocks},
        picture=picture,
        has_curves=bool(names),
    )


def markdown(report: BootstrapReport) -> str:
    """Headline, the table of before and after, and the ways to MLflow."""
    lines = [
        f"## {headline(report.summary)}",
        "",
        report.gate,
        "",
        "| measure | before | after | change |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {r.group}, {r.name} | {r.before} | {r.after} | {r.change} |" for r in summary_rows(report.summary)]
    links = [f"- [{step.name}]({step.mlflow})" for step in report.steps if step.mlflow.startswith("http")]
    alarms = [f"- **{step.name}**: {alarm}" for step in report.steps for alarm in step.alarms]
    for title, items in (("Alarms", alarms), ("Runs in MLflow", links)):
        lines += ["", f"### {title}", "", *items] if items else []
    return "\n".join(lines) + "\n"


def step_graph(steps: Sequence[ReportStep]) -> Graph:
    return graph([(s.name, s.parents, s.seconds, bool(s.alarms)) for s in steps])


def loss_charts(steps: Sequence[ReportStep]) -> list[tuple[str, Chart]]:
    """A chart for each loss, with a line for each step that has it."""
    names = dict.fromkeys(loss for step in steps for loss in step.curves)
    return [(name, line_chart({s.name: s.curves[name] for s in steps if name in s.curves})) for name in names]


def chart_of(counts: MatchHistogram, threshold: float | None) -> Chart:
    kinds = {"true": counts.true, "false": counts.false, "unknown": counts.unknown}
    return histogram(
        {kind: bars for kind, bars in kinds.items() if any(bars)} or {"unknown": counts.unknown}, threshold
    )


def picture(data: bytes) -> dict[str, Any]:
    """An image as the page holds it: a data URI of a thumbnail, its size, and whether its pixels are to be seen."""
    image = decode(data, MOST_PIXELS)  # the steps have set their own limits
    crisp = max(image.size) <= CRISP
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "PNG" if crisp else "JPEG", quality=85, optimize=True)
    kind = "png" if crisp else "jpeg"
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", "crisp": crisp}
