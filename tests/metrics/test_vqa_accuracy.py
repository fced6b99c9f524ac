import json
import os
from pathlib import Path

import pytest

from blip.metrics.vqa import CONTRACTIONS, direct_answer_accuracy, normalise_words, strip_punctuation, vqa_accuracy

GOLDEN = json.loads((Path(os.environ.get("BLIP_GOLDEN", "tests/golden")) / "misc.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["vqa"], ids=lambda case: case["prediction"])
def test_accuracy_equals_the_reference(case):
    assert round(vqa_accuracy(case["prediction"], case["answers"]), 2) == case["accuracy"]


def test_the_mean_equals_the_reference():
    scores = [vqa_accuracy(case["prediction"], case["answers"]) for case in GOLDEN["vqa"]]
    assert round(sum(scores) / len(scores), 2) == GOLDEN["vqa_overall"]


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_accuracy_by_the_number_of_people_who_agree(matches, accuracy):
    assert vqa_accuracy("cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red/blue", "red blue"),
        ("yes, sir", "yes sir"),
        ("1,000", "1000"),
        ("5.30 p.m.", "5.30 pm"),
        ("t-shirt", "t shirt"),
        ("- no", " no"),
    ],
)
def test_punctuation(text, expected):
    assert strip_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Two dogs", "2 dogs"),
        ("none", "0"),
        ("a an the", ""),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("were", "were"),
    ],
)
def test_words(text, expected):
    assert normalise_words(text) == expected


def test_contractions_lack_one_apostrophe_each():
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'alld've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert not {"shed", "wed", "ill", "its", "well"} & CONTRACTIONS.keys()


def test_no_answers_are_an_error():
    with pytest.raises(ValueError, match="'cat': no human answers"):
        vqa_accuracy("cat", [])


@pytest.mark.parametrize(
    ("answer", "said", "accuracy"),
    [
        ("The two dogs.", ["2 dogs"] * 9 + ["two dogs"], 100),
        ("isnt", ["isn't"] * 2 + ["no"] * 8, 60),
        ("a cat", ["cat"] * 3 + ["dog"] * 7, 90),
        ("1,000", ["1000"] * 10, 100),
        ("yes/no", ["yes no"] * 10, 100),
        ("5.30", ["5.30", *["6"] * 9], 30),
        ("red", ["red\n"] * 4 + ["blue"] * 6, 100),
    ],
)
def test_the_servers_rules_by_hand(answer: str, said: list[str], accuracy: float):
    """Articles, numbers, contractions, punctuation and space, and the mean over nine of ten annotators."""
    assert vqa_accuracy(answer, said) == pytest.approx(accuracy)


def test_direct_answers_of_a_okvqa_count_equal_texts():
    assert direct_answer_accuracy("cab", ["cab", "cab", "taxi"]) == pytest.approx(200 / 3)
    assert direct_answer_accuracy("the cab", ["cab"] * 10) == 0
