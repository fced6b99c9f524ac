"""A step's own page: its curves, scores and some of its images, where a run is looked at step by step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from blip.data.images import decode
from blip.data.judge import Judge, judge_of
from blip.data.manifest import Manifest
from blip.data.sample import BadSample, Sample
from blip.data.shards import samples
from blip.report.bootstrap_page import picture
from blip.report.charts import Chart, line_chart
from blip.tracking.run import flatten

SHOWN = 12
"""Images of a data set on the page."""
PERCENT = 100.0


class Bar(NamedTuple):
    """A score; `most` is what a whole bar stands for."""

    name: str
    after: float
    most: float
    before: float = 0.0

    def share(self, value: float) -> float:
        return max(0.0, min(value / self.most, 1.0)) if self.most else 0.0


class Card(NamedTuple):
    """An image with its texts and a note to each."""

    key: str
    image: bytes
    texts: list[tuple[str, str]]


@dataclass
class Sheet:
    title: str
    note: str = ""
    bars: list[Bar] = field(default_factory=list)
    compares: bool = False
    """Whether bars show a score before as well."""
    charts: list[tuple[str, Chart]] = field(default_factory=list)
    galleries: list[tuple[str, list[Card]]] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Writes the page, self-contained."""
        Path(path).write_text(template().render(sheet=self, picture=picture))


def data(figures: Mapping[str, Any], folder: str) -> Sheet:
    """Of a data folder: those of each split's first samples that are images, and the figures of `ingest`."""
    splits = {split: values for split, values in figures.items() if isinstance(values, Mapping)}
    galleries = []
    for split in splits:
        first = filter(is_image, islice(samples(Manifest.load(Path(folder, f"{split}.json"))), SHOWN))
        galleries.append((split.capitalize(), [Card(s.key, s.images[0], [(text, "") for text in s.texts]) for s in first]))
    words = (f"{split}: {values['samples']:,} images in {values['shards']:,} shards" for split, values in splits.items())
    return Sheet("Data", " · ".join(words), galleries=galleries)


def is_image(sample: Sample) -> bool:
    """Whether there is something to show; training and CapFilt leave out and count what there is not."""
    try:
        decode(sample.images[0])
    except BadSample:
        return False
    return True


def training(stage: str, figures: Mapping[str, Any]) -> Sheet:
    """Of the figures of `train`: a chart for each loss, and alarms in words."""
    alarms = [f"alarm {alarm['name']} at step {alarm['step']}" for alarm in figures["alarms"]]
    charts = [(name, line_chart({name: points}, width=430)) for name, points in figures["curves"].items()]
    return Sheet(stage.capitalize(), " · ".join([f"{figures['steps']:,} steps", *alarms]), charts=charts)


def evaluation(figures: Mapping[str, Any], folder: str) -> Sheet:
    """Of the figures of `evaluate`: recalls, and captions beside what people wrote."""
    recalls = [Bar(name, value, PERCENT) for name, value in figures.get("retrieval", {}).items()]
    words = " · ".join(f"{name} {value:.4g}" for name, value in figures.get("captioning", {}).items())
    captions = figures["described"]
    manifest = Manifest.load(Path(folder, f"{figures['split']}.json"))
    judge = judge_of(manifest)
    found = (sample for sample in samples(manifest) if sample.id in captions)
    cards = [described(sample, captions[sample.id], judge) for sample in islice(found, len(captions))]
    return Sheet("Evaluation", words, recalls, galleries=[("Captions", cards)] if cards else [])


def described(sample: Sample, caption: str, judge: Judge | None) -> Card:
    true = judge(sample.meta, caption) if judge else None
    verdict = {True: ", true", False: ", false", None: ""}[true]
    return Card(sample.key, sample.images[0], [(caption, f"the model{verdict}"), (sample.texts[0], "a person")])


def gate(figures: Mapping[str, Any], before: str, after: str) -> Sheet:
    """Of the figures of `register`: what both models scored, from the evaluations' files."""
    old, new = (flat(json.loads(Path(path).read_text())) for path in (before, after))
    bars = [Bar(name, value, max(value, old[name]), old[name]) for name, value in new.items() if name in old]
    return Sheet("Gate", figures["gate"], bars, compares=True)


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """The scores of an evaluation under dotted names."""
    return {name: float(value) for name, value in flatten({task: figures[task] for task in ("retrieval", "captioning") if task in figures})}


@cache
def template() -> Template:
    environment = Environment(
        loader=PackageLoader("blip.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:.4g}"
    return environment.get_template("step_page.html")
