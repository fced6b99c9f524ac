"""The report of a bootstrap: a self-contained HTML page."""

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
from blip.results import MatchHistogram, Point, SelectResult, Source

BINS = 20
THUMBNAIL = 256
"""The longest side of a picture on the page, in pixels."""
CRISP = 64
"""Pictures up to this size, in pixels, are shown without smoothing."""


class ReportStep(Config):
    """A step of the pipeline."""

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
    """The digest of the manifest or model that it made."""
    mlflow: str = ""
    """The address or the ID of its run in MLflow."""


class ScoredText(Config):
    """A text with the filter's p(match) and the decision."""

    text: str
    match: float | None
    kept: bool
    reason: str = ""
    """The reason it was dropped."""
    true: bool | None = None


class ReportPicture(Config):
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
    pictures: tuple[ReportPicture, ...]


class Described(Config):
    """A test image with a human caption and both models' captions, and whether these are true, if known."""

    image: bytes
    reference: str
    before: str
    after: str
    before_true: bool | None = None
    after_true: bool | None = None


class Selection(Config):
    """What CapFilt scored and kept."""

    threshold: float | None = None
    score: str = "p(match)"
    """What the histograms and the numbers beside texts are of."""
    histograms: tuple[MatchHistogram, ...] = ()
    galleries: tuple[Gallery, ...] = ()

    @property
    def charts(self) -> list[tuple[MatchHistogram, Chart]]:
        """The histograms, drawn."""
        return [(counts, chart_of(counts, self.threshold)) for counts in self.histograms]

    @property
    def kinds(self) -> set[str]:
        """What is known of the texts in the histograms: true, false, unknown."""
        return {block.kind for _, chart in self.charts for block in chart.blocks}


class BootstrapReport(Config):
    """The content of the page."""

    summary: Summary
    title: str = "Bootstrap"
    revision: str = ""
    facts: dict[str, str] = Field(default_factory=dict)
    """Shown under the headline, such as the size of each split."""
    gate: str = ""
    """The reason why the new model was registered or not."""
    steps: tuple[ReportStep, ...] = ()
    selection: Selection = Selection()
    described: tuple[Described, ...] = ()
    bad: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Samples or texts left out, by place and reason."""


def selection(result: SelectResult, pictures: Sequence[ReportPicture]) -> Selection:
    """Returns what a page shows of a selection and its pictures."""
    return Selection(
        threshold=result.threshold,
        score=result.score_name,
        histograms=result.histograms,
        galleries=galleries(pictures, "web") + galleries(pictures, "synthetic"),
    )


def galleries(pictures: Sequence[ReportPicture], source: Source = "web", most: int = 6) -> tuple[Gallery, ...]:
    """Groups pictures by the decision on their first text of a source, ranked by score.

    Kept and dropped with the highest and lowest certainty; then, if the truth is known, wrong decisions.
    """
    scored = [(p, p.texts(source)[0]) for p in pictures if p.texts(source) and p.texts(source)[0].match is not None]
    scored.sort(key=lambda pair: -(pair[1].match or 0.0))
    kept = [p for p, text in scored if text.kept]
    dropped = [p for p, text in scored if not text.kept]
    chosen = [
        ("Kept, surest", f"The {source} texts with the highest scores.", kept[:most]),
        ("Kept, least sure", "Just above the threshold.", kept[most:][::-1][:most]),
        ("Dropped, least sure", "Just below the threshold.", dropped[:most]),
        ("Dropped, surest", "The lowest scores.", dropped[most:][::-1][:most]),
        (
            "Kept, and false",
            "What the filter let through.",
            [p for p, text in scored if text.kept and text.true is False][:most],
        ),
        (
            "Dropped, and true",
            "What the filter took for noise.",
            [p for p, text in scored if not text.kept and text.true][::-1][:most],
        ),
    ]
    found = (
        Gallery(title=f"{source.capitalize()}: {title.lower()}", note=note, pictures=tuple(some))
        for title, note, some in chosen
    )
    return tuple(g for g in found if g.pictures)


def bootstrap_html(report: BootstrapReport) -> str:
    """Renders the self-contained page, with styles, charts and pictures."""
    names = {step.name: i for i, step in enumerate(s for s in report.steps if s.curves)}
    return page_template("bootstrap_page.html").render(
        report=report,
        headline=headline(report.summary),
        rows=summary_rows(report.summary),
        graph=step_graph(report.steps),
        names=names,
        losses=loss_charts(report.steps),
        picture=picture,
        has_curves=bool(names),
    )


def step_graph(steps: Sequence[ReportStep]) -> Graph:
    return graph([(s.name, s.parents, s.seconds, bool(s.alarms)) for s in steps])


def loss_charts(steps: Sequence[ReportStep]) -> list[tuple[str, Chart]]:
    """Returns one chart per loss, with one line per step."""
    names = dict.fromkeys(loss for step in steps for loss in step.curves)
    return [(name, line_chart({s.name: s.curves[name] for s in steps if name in s.curves})) for name in names]


def chart_of(counts: MatchHistogram, threshold: float | None) -> Chart:
    kinds = {"true": counts.true, "false": counts.false, "unknown": counts.unknown}
    return histogram(
        {kind: bars for kind, bars in kinds.items() if any(bars)} or {"unknown": counts.unknown}, threshold
    )


def picture(data: bytes) -> dict[str, Any]:
    """Returns the data URI of an image's thumbnail, and whether it is shown without smoothing (`crisp`)."""
    image = decode(data, MOST_PIXELS)  # the steps enforced their own limits
    crisp = max(image.size) <= CRISP
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "PNG" if crisp else "JPEG", quality=85, optimize=True)
    kind = "png" if crisp else "jpeg"
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", "crisp": crisp}
