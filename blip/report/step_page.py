"""The page of a single step: its curves, scores and some of its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from blip.data.images import decode
from blip.datasets.judge import Judge, judge_of
from blip.report.bootstrap_page import picture
from blip.report.charts import Chart, line_chart
from blip.report.rendering import page_template
from blip.results import (
    CapFiltResult,
    EvaluationResult,
    FeaturesResult,
    FetchResult,
    FrozenResult,
    GateResult,
    IngestResult,
    TrainResult,
)
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import BadSample, Sample, format_counts

IMAGES_SHOWN = 12
"""The number of images of each split on the page."""
PERCENT = 100.0


class ScoreBar(NamedTuple):
    """A score drawn as a bar; `most` is the value of a full bar."""

    name: str
    after: float
    most: float
    before: float = 0.0

    def share(self, value: float) -> float:
        return max(0.0, min(value / self.most, 1.0)) if self.most else 0.0


class ImageCard(NamedTuple):
    """An image with (text, note) pairs."""

    key: str
    image: bytes
    texts: list[tuple[str, str]]
    note: str = ""
    """Shown once, below the texts."""


@dataclass
class StepPage:
    title: str
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The numbers by which runs are compared."""
    mlflow: str = ""
    """The address of the step's run in MLflow."""
    bars: list[ScoreBar] = field(default_factory=list)
    compares: bool = False
    """Whether bars also show the score before."""
    charts: list[tuple[str, Chart]] = field(default_factory=list)
    galleries: list[tuple[str, list[ImageCard]]] = field(default_factory=list)
    items: Sequence[str] = ()
    """Shown as a list below the note."""
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()
    """Titles with rows, of which the first is the head."""

    def html(self) -> str:
        """Returns the self-contained page."""
        return page_template("step_page.html").render(page=self, picture=picture)


def ingest_page(result: IngestResult, folder: str | Path) -> StepPage:
    """Shows the first decodable samples of each split of a data folder."""
    galleries = []
    for split in result.splits:
        first = filter(has_image, islice(samples(Manifest.load(Path(folder, f"{split}.json"))), IMAGES_SHOWN))
        galleries.append(
            (split.capitalize(), [ImageCard(s.key, s.images[0], [(text, "") for text in s.texts]) for s in first])
        )
    sizes = (f"{split}: {found.samples:,} images in {found.shards:,} shards" for split, found in result.splits.items())
    return StepPage("Data", " · ".join(sizes), result.compared(), result.mlflow, galleries=galleries)


def has_image(sample: Sample) -> bool:
    """Returns whether a sample's image can be decoded; training and CapFilt count those that cannot."""
    try:
        decode(sample.images[0])
    except BadSample:
        return False
    return True


def train_page(name: str, result: TrainResult) -> StepPage:
    """Shows a chart per loss, and alarms; `name` is that of the step."""
    alarms = [f"alarm {alarm}" for alarm in result.alarms]
    charts = [(name, line_chart({name: points}, width=430)) for name, points in result.curves.items()]
    note = " · ".join([f"{result.steps:,} steps", *alarms])
    return StepPage(name.capitalize(), note, result.compared(), result.mlflow, charts=charts)


def frozen_page(result: FrozenResult) -> StepPage:
    """Shows a chart of each model's loss, and where the models lie."""
    charts = [(name, line_chart({name: points}, width=430)) for name, points in result.curves.items()]
    note = " · ".join(f"{name}: {place}" for name, place in result.sources.items())
    return StepPage("Frozen", note or "Others' models", result.compared(), result.mlflow, charts=charts)


def features_page(result: FeaturesResult) -> StepPage:
    """Shows how many images were encoded, and how fast."""
    encoded = f"{result.images:,} images encoded, {result.found:,} found from before"
    note = encoded if result.images or result.found else "The stage trains on images: task.features is false"
    return StepPage("Features", note, result.compared(), result.mlflow)


def capfilt_page(result: CapFiltResult) -> StepPage:
    """Shows the figures of scoring; the page of `select` shows what is kept."""
    set_aside = [f"shard {name} was set aside: {why}" for name, why in result.dead.items()]
    return StepPage("CapFilt", " · ".join(set_aside), result.compared(), result.mlflow)


def evaluation_page(name: str, result: EvaluationResult, folder: str | Path) -> StepPage:
    """Shows recalls as bars, and captions next to human ones; `name` is that of the step."""
    recalls = [ScoreBar(name, value, PERCENT) for name, value in result.scores.get("retrieval", {}).items()]
    others = {name: value for name, value in result.compared().items() if not name.startswith("retrieval.")}
    captions = result.described
    manifest = Manifest.load(Path(folder, f"{result.split}.json"))
    judge = judge_of(manifest)
    found = (sample for sample in samples(manifest) if sample.id in captions)
    cards = [caption_card(sample, captions[sample.id], judge) for sample in islice(found, len(captions))]
    galleries = [("Captions", cards)] if cards else []
    note = f"Left out: {format_counts(result.rejected)}" if result.rejected else ""
    items = [f"{score} is not scored: {reason}" for score, reason in result.not_scored.items()]
    return StepPage(name.capitalize(), note, others, result.mlflow, recalls, galleries=galleries, items=items)


def caption_card(sample: Sample, caption: str, judge: Judge | None) -> ImageCard:
    true = judge(sample.meta, caption) if judge else None
    verdict = {True: ", true", False: ", false", None: ""}[true]
    said = [(text, "a person") for text in sample.texts[:1]]
    return ImageCard(sample.key, sample.images[0], [(caption, f"the model{verdict}"), *said])


def fetched_page(result: FetchResult) -> StepPage:
    """Shows which model was fetched."""
    note = f"{result.source}, a model trained for {result.task}, digest {result.digest[:12]}"
    return StepPage("Model", note, result.compared(), result.mlflow)


def gate_page(result: GateResult, before: EvaluationResult | None, after: EvaluationResult) -> StepPage:
    """Shows the scores of the first model, if there is one, and of this one."""
    if before is None:
        bars = [ScoreBar(name, value, max(value, PERCENT)) for name, value in after.named().items()]
        return StepPage("Gate", result.reason, result.compared(), result.mlflow, bars)
    old = before.named()
    bars = [
        ScoreBar(name, value, max(value, old[name]), old[name]) for name, value in after.named().items() if name in old
    ]
    return StepPage("Gate", result.reason, result.compared(), result.mlflow, bars, compares=True)
