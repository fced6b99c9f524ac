"""A step's page shows its results and loads nothing from elsewhere."""

import base64
import re
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from blip.datasets import shapes
from blip.datasets.judge import JUDGE, SHAPES
from blip.report import step_page
from blip.results import Alarm, EvaluationResult, GateResult, IngestResult, SplitResult, TrainResult
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import Sample
from blip.shards.writing import write_shards

WORLD = shapes.ShapesConfig(gold=3, web=20, test=4, seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a malicious text."""
    gold = [*shapes.gold_samples(WORLD)]
    gold[0] = Sample(gold[0].key, gold[0].images, ["<script>alert(1)</script>"], gold[0].meta)
    for split, made in (("gold", gold), ("web", shapes.web_samples(WORLD)), ("test", shapes.test_samples(WORLD))):
        write_shards(made, tmp_path / "shards", split, 2, meta={JUDGE: SHAPES}).save(tmp_path / f"{split}.json")
    return tmp_path


def saved(made: step_page.StepPage) -> str:
    page = made.html()
    assert not re.search(r'(src|href)="(?!data:)', page)
    return page


def images(page: str) -> list[tuple[int, int]]:
    """Returns the sizes of the embedded images."""
    return [
        Image.open(BytesIO(base64.b64decode(data))).size
        for data in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    ]


def test_data_shows_the_first_images_of_each_split_with_their_texts(folder: Path):
    splits = {split: SplitResult(samples=n, shards=2) for split, n in (("gold", 3), ("web", 20), ("test", 4))}
    page = saved(step_page.ingest_page(IngestResult(splits=splits, vocabulary=64), folder))
    assert len(images(page)) == 3 + step_page.IMAGES_SHOWN + 4
    assert all(sample.texts[0] in page for sample in shapes.test_samples(WORLD))
    assert "web: 20 images in 2 shards" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_data_shows_what_can_be_shown_of_images_that_others_made(folder: Path):
    good, other, *_ = shapes.web_samples(WORLD)
    bad = [Sample("cut", [good.images[0][:60]], ["a cut"]), Sample("text", [b"no image"], ["a page"], image_ext="jpg")]
    write_shards([good, *bad, other], folder / "shards", "web", 4).save(folder / "web.json")
    result = IngestResult(splits={"web": SplitResult(samples=4, shards=1)}, vocabulary=64)
    page = saved(step_page.ingest_page(result, folder))
    assert len(images(page)) == 2


def test_training_shows_each_loss_and_says_what_went_wrong():
    curves = {"itc": [(i, 6.0 - i / 100) for i in range(100)], "itm": [(0, 0.69), (50, float("nan")), (99, 0.4)]}
    alarms = (Alarm(name="itm_at_prior", step=60),)
    result = TrainResult(steps=1000, losses={}, curves=curves, alarms=alarms)
    page = saved(step_page.train_page("pretrain", result))
    assert page.count('class="line"') == 2
    assert "nan" not in page
    assert "itc, 5.01 at the end" in page
    assert "1,000 steps · alarm itm at prior at step 60" in page


def test_evaluation_shows_recalls_and_captions_with_their_truth(folder: Path):
    first, second, *_ = samples(Manifest.load(folder / "test.json"))
    described = {first.id: first.texts[0], second.id: "a tiny purple hexagon"}
    scores = {"retrieval": {"tr1": 25.0, "ir1": 100.0}, "captioning": {"cider": 3.4567}}
    result = EvaluationResult(split="test", scores=scores, described=described)
    page = saved(step_page.evaluation_page("evaluate-before", result, folder))
    assert len(images(page)) == 2
    assert 'width="80.0"' in page
    assert 'width="320.0"' in page
    assert "<td>captioning.cider</td><td>3.457</td>" in page
    assert "the model, true" in page
    assert "the model, false" in page


def test_evaluation_says_what_is_not_scored_and_what_was_left_out(folder: Path):
    mute = Sample("mute", next(samples(Manifest.load(folder / "test.json"))).images, [], {"image_id": 1})
    write_shards([mute], folder / "shards", "server", 4).save(folder / "server.json")
    (found,) = samples(Manifest.load(folder / "server.json"))
    result = EvaluationResult(
        split="server",
        scores={"captioning": {}},
        described={found.id: "a red disc"},
        not_scored={"vqa": "none of the samples has a question"},
        rejected={"empty text": 2},
    )
    page = saved(step_page.evaluation_page("evaluate", result, folder))
    assert "vqa is not scored: none of the samples has a question" in page
    assert "Left out: 2 (empty text)" in page
    assert "a red disc" in page
    assert "a person" not in page


def test_an_evaluation_without_captions_shows_recalls_alone(folder: Path):
    result = EvaluationResult(split="test", scores={"retrieval": {"tr1": 25.0}})
    page = saved(step_page.evaluation_page("evaluate-before", result, folder))
    assert page.count("tr1") == 1 + page.count('aria-label="tr1"'), "a score stands on the page once"
    assert not images(page)


def test_the_gate_shows_both_models():
    before = EvaluationResult(split="test", scores={"retrieval": {"tr1": 10.0}})
    after = EvaluationResult(split="test", scores={"retrieval": {"tr1": 40.0}, "captioning": {"cider": 1.0}})
    made = step_page.gate_page(GateResult(registered=True, version=1, reason="registered as version 1"), before, after)
    assert [(bar.name, bar.before, bar.after) for bar in made.bars] == [("retrieval.tr1", 10.0, 40.0)]
    page = saved(made)
    assert "registered as version 1" in page
    assert 'class="before" width="80.0"' in page
    assert re.search(r'class="after" y="9" width="320.0"', page)
