import math

import pytest

from blip.metrics import captioning
from blip.metrics.captioning import caption_scores, tokenize


def test_scores_by_hand():
    scores = caption_scores({"x": "A red dog!"}, {"x": ["a red cat"]})
    # Of three words two match, of two pairs one; the longest common part is two of three words.
    assert scores["bleu1"] == pytest.approx(200 / 3)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))
    assert scores["bleu4"] == pytest.approx(0, abs=0.1)
    assert scores["rouge_l"] == pytest.approx(200 / 3)
    assert scores["cider"] == 0  # of one image, no word is rarer than another


def test_cider_rewards_what_is_said_of_this_image_alone():
    references = {"x": ["two brown dogs run"], "y": ["a bowl of soup"]}
    right = {key: texts[0] for key, texts in references.items()}
    assert caption_scores(right, references)["cider"] == pytest.approx(1000)
    assert caption_scores(right | {"y": "two brown dogs run"}, references)["cider"] == pytest.approx(500)
    assert caption_scores({"x": right["y"], "y": right["x"]}, references)["cider"] == 0


def test_the_best_of_several_references_counts():
    scores = caption_scores({"x": "a dog runs fast now"}, {"x": ["nothing alike", "a dog runs fast now"]})
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100] * 4)


def test_tokens_are_those_of_the_treebank():
    texts = ["The man's car, isn't RED?", "", "one\ntwo\u2028three", "café — naïve", ""]
    assert tokenize(texts) == ["the man 's car is n't red", "", "one two three", "café naïve", ""]


def test_meteor_knows_stems():
    scores = caption_scores({"x": "dogs jumping"}, {"x": ["dogs jumped"]}, meteor=True)
    assert scores["bleu1"] == pytest.approx(50)
    assert 60 < scores["meteor"] < 100


def test_nothing_is_printed(capfd):
    caption_scores({"x": "a dog"}, {"x": ["a dog"]})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        ({"x": "a", "y": "b"}, {"x": ["a"], "z": ["c"]}, "2 images have a caption or references but not both, among them y, z"),
        ({"x": "a"}, {"x": []}, "1 images have no reference, among them x"),
    ],
)
def test_mistakes_are_named(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(candidates, references)


def test_a_failing_java_says_why(monkeypatch):
    monkeypatch.setattr(captioning, "JAVA", (*captioning.JAVA, "-XX:NoSuchOption"))
    with pytest.raises(RuntimeError, match="NoSuchOption"):
        caption_scores({"x": "a"}, {"x": ["a"]})
