import base64
import math
from html.parser import HTMLParser
from io import BytesIO
from random import Random
from typing import Any

import pytest
from PIL import Image

from blip.datasets import shapes
from blip.report import bootstrap_page
from blip.report.bootstrap_page import (
    BootstrapReport,
    Described,
    Gallery,
    ReportPicture,
    ReportStep,
    ScoredText,
    Selection,
)
from blip.report.rendering import minutes
from blip.report.summary import Summary
from blip.results import SOURCES, MatchHistogram, Source

WORLD = shapes.ShapesConfig(gold=1, web=160, test=6, seed=3, two_objects=0.2)
ORDER: dict[str, tuple[tuple[str, ...], float, str]] = {
    "ingest": ((), 12.4, "read gold, web and test pairs into shards, train the tokenizer"),
    "pretrain": (("ingest",), 92.0, "learn ITC, ITM and LM on web and gold"),
    "captioner": (("ingest", "pretrain"), 41.0, "fine-tune on gold to describe an image"),
    "filter": (("ingest", "pretrain"), 38.0, "fine-tune on gold to tell a text that matches from one that does not"),
    "capfilt": (("ingest", "captioner", "filter"), 33.1, "caption every web image, keep the texts that match"),
    "pretrain-again": (("capfilt",), 91.0, "learn from scratch on what was kept and gold"),
    "evaluate-before": (("ingest", "pretrain"), 21.0, "retrieve and describe the test images with the first model"),
    "evaluate-after": (("ingest", "pretrain-again"), 20.6, "the same with the second model"),
    "register": (("pretrain-again", "evaluate-before", "evaluate-after"), 4.1, "let the better model through the gate"),
    "report": (("register",), 3.0, "put figures, curves and pictures on one page"),
}
FIGURES: dict[str, Any] = {
    "noise": {"web": {"before": 0.5, "after": 0.934}, "synthetic": {"before": 0.641, "after": 0.952}},
    "capfilt": {
        "web": {"precision": 0.934, "recall": 0.842, "kept": 0.451},
        "synthetic": {"precision": 0.952, "recall": 0.896, "kept": 0.603},
    },
    "retrieval": {
        "before": {"tr1": 6.3, "tr5": 19.0, "tr10": 29.6, "ir1": 5.1, "ir5": 17.2, "ir10": 28.1},
        "after": {"tr1": 28.4, "tr5": 61.0, "tr10": 77.0, "ir1": 27.1, "ir5": 60.2, "ir10": 76.1},
    },
    "caption": {
        "before": {"true": 0.41, "cider": 0.61, "bleu4": 0.22},
        "after": {"true": 0.72, "cider": 1.12, "bleu4": 0.317},
    },
    "seconds": {"total": 356.2, **{name: seconds for name, (_, seconds, _) in ORDER.items()}},
    "registered": True,
}


def test_a_transparent_picture_is_shown_as_people_see_it():
    file = BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(file, "PNG")
    shown = base64.b64decode(bootstrap_page.picture(file.getvalue())["uri"].partition(",")[2])
    assert Image.open(BytesIO(shown)).convert("RGB").getextrema() == ((255, 255),) * 3


def curve(rng: Random, first: float, last: float, length: int = 500) -> list[tuple[int, float]]:
    return [
        (i, last + (first - last) * math.exp(-i / (length / 5)) + rng.gauss(0, 0.06) * last)
        for i in range(0, length, 5)
    ]


def step(rng: Random, name: str) -> ReportStep:
    parents, seconds, purpose = ORDER[name]
    ends = {"pretrain": {"itc": 4.4, "itm": 0.56, "lm": 2.1}, "pretrain-again": {"itc": 3.5, "itm": 0.41, "lm": 1.5}}
    ends |= {"captioner": {"lm": 1.2}, "filter": {"itc": 3.1, "itm": 0.33}}
    firsts = {"itc": 6.1, "itm": 0.68, "lm": 5.0}
    return ReportStep(
        name=name,
        purpose=purpose,
        parents=parents,
        seconds=seconds,
        curves={loss: curve(rng, firsts[loss], last) for loss, last in ends.get(name, {}).items()},
        params={"optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]}, "seed": 42} if name in ends else {},
        alarms=("ITM at its prior: the mean loss of the last 200 steps is 0.6360",) if name == "pretrain" else (),
        digest=f"sha256:{rng.getrandbits(128):032x}",
        mlflow="http://localhost:5000/#/experiments/1/runs/abc"
        if name == "pretrain"
        else f"{rng.getrandbits(128):032x}",
    )


def picture(rng: Random, sample: Any) -> ReportPicture:
    """Returns a web sample with scores of a filter that is mostly right."""
    scene = sample.meta["truth"]
    written = shapes.write_caption(scene if rng.random() < 0.7 else shapes.random_scene(rng), rng)

    def judge(text: str) -> ScoredText:
        true = shapes.is_true(scene, text)
        right = rng.betavariate(7, 1.2)
        match = right if true == (rng.random() < 0.93) else 1 - right
        return ScoredText(text=text, match=match, kept=match >= 0.5, true=true)

    return ReportPicture(
        key=sample.key, image=sample.images[0], web=(judge(sample.texts[0]),), synthetic=(judge(written),)
    )


def histogram(source: Source, texts: list[ScoredText]) -> MatchHistogram:
    """Returns a histogram of a source's texts by truth and p(match), in 20 bins."""
    bins: dict[bool | None, list[int]] = {known: [0] * 20 for known in (True, False, None)}
    for text in texts:
        if text.match is not None:
            bins[text.true][min(int(text.match * 20), 19)] += 1
    return MatchHistogram(source=source, true=tuple(bins[True]), false=tuple(bins[False]), unknown=tuple(bins[None]))


def report(**changed: Any) -> BootstrapReport:
    """Returns plausible figures of a shapes bootstrap."""
    rng = Random(0)
    pictures = [picture(rng, sample) for sample in shapes.web_samples(WORLD)]
    described = [
        Described(
            image=sample.images[0],
            reference=sample.texts[0],
            before=(before := shapes.write_caption(shapes.random_scene(rng), rng)),
            after=(after := shapes.write_caption(sample.meta["truth"], rng)),
            before_true=shapes.is_true(sample.meta["truth"], before),
            after_true=shapes.is_true(sample.meta["truth"], after),
        )
        for sample in shapes.test_samples(WORLD)
    ]
    values: dict[str, Any] = {
        "summary": Summary.model_validate(FIGURES),
        "revision": "v0.1.0-12-g1234567",
        "facts": {"data": "shapes", "preset": "shapes", "seed": "42"},
        "gate": "It beats the first model and the champion so far (version 2, text R@1 24.0%).",
        "steps": tuple(step(rng, name) for name in ORDER),
        "described": tuple(described),
        "bad": {
            "ingest": {"undecodable image": 3, "empty text": 12},
            "capfilt": {"below threshold": 4392, "repeated text": 41},
        },
    }
    selected: dict[str, Any] = {
        "threshold": 0.5,
        "histograms": tuple(histogram(source, [p.texts(source)[0] for p in pictures]) for source in SOURCES),
        "galleries": (*bootstrap_page.galleries(pictures), *bootstrap_page.galleries(pictures, "synthetic", most=3)),
    }
    of_selection = {name: changed.pop(name) for name in [*changed] if name in Selection.model_fields}
    return BootstrapReport(**values | changed, selection=Selection(**selected | of_selection))


class Tags(HTMLParser):
    """Parses a page into its tags with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_page_needs_nothing_but_itself():
    text = bootstrap_page.bootstrap_html(report())
    tags = Tags(text).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    images = [attrs["src"] or "" for tag, attrs in tags if tag == "img"]
    assert len(images) > 40
    assert all(src.startswith("data:image/") for src in images)
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_shows_figures_decisions_curves_and_record():
    shown = Tags(bootstrap_page.bootstrap_html(report()))
    for words in (
        "93.4%",
        "28.4%",
        "5:56 min",
        "ITM at its prior: the mean loss of the last 200 steps is 0.6360",
        "empty text",
        "optimizer.lr",
    ):
        assert words in " ".join(shown.words), words
    lines = [
        attrs["class"] for tag, attrs in shown.tags if tag == "path" and (attrs.get("class") or "").startswith("line")
    ]
    assert sorted(filter(None, lines)) == [f"line s{i}" for i in (0, 0, 0, 1, 2, 2, 3, 3, 3)], (
        "itc, itm and lm of four trainings"
    )
    assert {"kept", "dropped", "Web: kept, and false", "pretrain-again"} <= set(shown.words)


def test_texts_of_the_web_stay_texts():
    evil = "<script>alert('web')</script>"
    sample = next(shapes.web_samples(WORLD))
    judged = ScoredText(text=evil, match=0.9, kept=True)
    gallery = Gallery(
        title="Kept", note="", pictures=(ReportPicture(key=evil, image=sample.images[0], web=(judged,), synthetic=()),)
    )
    shown = Tags(bootstrap_page.bootstrap_html(report(galleries=(gallery,))))
    assert "script" not in {tag for tag, _ in shown.tags}
    assert evil in shown.words


def test_a_world_without_known_truth_has_a_page_too():
    unknown = {"before": None, "after": None}
    kept = {"precision": None, "recall": None, "kept": 0.45}
    figures = FIGURES | {
        "noise": {"web": unknown, "synthetic": unknown},
        "capfilt": {"web": kept, "synthetic": kept},
        "registered": False,
    }
    texts = [ScoredText(text="a text", match=match, kept=match >= 0.5) for match in (0.2, 0.9)]
    counts = histogram("web", texts)
    text = bootstrap_page.bootstrap_html(
        report(summary=Summary.model_validate(figures), histograms=(counts,), galleries=(), described=())
    )
    shown = " ".join(Tags(text).words)
    assert "Text R@1 rose from 6.3% to 28.4%; 45% of the web texts were kept." in shown
    assert "truth not known" in shown
    assert "not registered" in shown
    assert "true texts" not in shown


def test_a_report_of_figures_alone_has_a_page():
    assert "93.4%" in bootstrap_page.bootstrap_html(BootstrapReport(summary=Summary.model_validate(FIGURES)))


def test_small_pictures_keep_their_pixels_and_large_ones_become_small():
    sample = next(shapes.web_samples(WORLD))
    small = bootstrap_page.picture(sample.images[0])
    assert small["crisp"]
    with (
        Image.open(BytesIO(base64.b64decode(small["uri"].split(",")[1]))) as kept,
        Image.open(BytesIO(sample.images[0])) as original,
    ):
        assert kept.convert("RGB").tobytes() == original.convert("RGB").tobytes()
    file = BytesIO()
    Image.new("RGBA", (1200, 600), "red").save(file, "PNG")
    large = bootstrap_page.picture(file.getvalue())
    assert not large["crisp"]
    with Image.open(BytesIO(base64.b64decode(large["uri"].split(",")[1]))) as kept:
        assert kept.size == (256, 128)


def test_galleries_show_the_surest_the_least_sure_and_the_mistakes():
    sample = next(shapes.web_samples(WORLD))

    def judged(match: float, true: bool) -> ReportPicture:
        text = ScoredText(text="a text", match=match, kept=match >= 0.5, true=true)
        return ReportPicture(key=f"{match}", image=sample.images[0], web=(text,), synthetic=())

    pictures = [
        judged(m, t)
        for m, t in ((0.1, False), (0.4, True), (0.6, False), (0.9, True), (0.2, False), (0.7, True), (0.95, True))
    ]
    found = {g.title: [p.key for p in g.pictures] for g in bootstrap_page.galleries(pictures, most=2)}
    assert found == {
        "Web: kept, surest": ["0.95", "0.9"],
        "Web: kept, least sure": ["0.6", "0.7"],
        "Web: dropped, least sure": ["0.4", "0.2"],
        "Web: dropped, surest": ["0.1"],
        "Web: kept, and false": ["0.6"],
        "Web: dropped, and true": ["0.4"],
    }
    assert bootstrap_page.galleries(pictures, "synthetic") == ()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (4.24, "4.2 s"), (41.0, "41 s"), (59.7, "1:00 min"), (125.4, "2:05 min"), (4320.0, "1:12 h")],
)
def test_durations_are_read_by_people(seconds, words):
    assert minutes(seconds) == words


def test_the_page_names_the_score_that_the_rule_reads():
    low = ScoredText(text="a cat", match=-0.25, kept=False, reason="unmatched")
    odd = picture(Random(0), next(iter(shapes.web_samples(WORLD)))).model_copy(update={"web": (low,)})
    page = bootstrap_page.bootstrap_html(report(score="similarity", galleries=bootstrap_page.galleries([odd])))
    assert 'title="similarity -0.2500"><i style="width:0%">' in page
    assert "The similarity of every text" in page
    assert "p(match)" not in page
    assert "The p(match) of every text" in bootstrap_page.bootstrap_html(report())
