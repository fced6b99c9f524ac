"""The scores of who sees no image: by hand, and against the mean over all orders."""

from itertools import permutations
from statistics import mean

import pytest
import torch

from blip.metrics.dialog import dialog_scores, random_order_scores
from blip.metrics.retrieval import random_order, ranks_by_group, summary
from blip.tasks.captioning import CaptionPrediction, others_captions
from blip.tasks.nlvr import NLVRConfig, NLVRPrediction
from blip.tasks.vqa import VQAConfig, VQAPrediction


@pytest.mark.parametrize("own", [(1, 1, 1), (2, 1, 1), (3, 2)])
def test_a_random_order_of_images_and_texts_recalls_what_all_orders_do_on_average(own: tuple[int, ...]):
    owner = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
    numbers = torch.arange(len(own))
    found = []
    for order in permutations(range(len(owner))):
        scores = torch.tensor(order, dtype=torch.float32).expand(len(own), -1)
        images = torch.arange(len(own), dtype=torch.float32).expand(len(owner), -1)
        found.append(summary(ranks_by_group(scores, numbers, owner), ranks_by_group(images, owner, numbers)))
    chance = random_order(own)
    for score in ("tr1", "tr5", "tr10"):
        assert chance[score] == pytest.approx(mean(one[score] for one in found))
    assert chance["ir1"] == pytest.approx(100 / len(own))
    assert chance["ir5"] == 100


def test_a_random_order_of_candidates_scores_what_all_ranks_do_on_average():
    every_rank = [*range(1, 4)] * 12 + [*range(1, 13)] * 3  # rounds of 3 and of 12 candidates, alike often
    expected = dict(dialog_scores(every_rank, []))
    assert dict(random_order_scores([3, 12])) == pytest.approx(expected)
    assert dict(random_order_scores([])) == {}


def test_the_most_frequent_answer_is_that_to_questions_of_the_same_kind(make):
    said = [("colour", "red"), ("colour", "red"), ("colour", "blue"), ("yes/no", "no")]
    predictions = [VQAPrediction(str(i), "?", [word] * 10, i, kind) for i, (kind, word) in enumerate(said)]
    unknown = VQAPrediction("4", "?", [], 4, "colour")
    assert dict(make(VQAConfig()).baseline([*predictions, unknown])) == pytest.approx(
        {"accuracy": 75.0, "accuracy_colour": 200 / 3, "accuracy_yes_no": 100.0}
    )


def test_the_more_frequent_label_counts(make):
    predictions = [NLVRPrediction(str(i), 0, label, str(i)) for i, label in enumerate([1, 0, 0, 0])]
    assert dict(make(NLVRConfig()).baseline(predictions)) == {"accuracy": 75.0}


def test_each_image_is_described_as_a_person_described_the_next_one():
    known = [CaptionPrediction(str(i), str(i), "?", [f"text {i}", "other"], {}) for i in range(3)]
    unknown = CaptionPrediction("3", "3", "?", [], {})
    found = others_captions([known[0], unknown, *known[1:]])
    assert [(p.key, p.caption) for p in found] == [("0", "text 1"), ("1", "text 2"), ("2", "text 0")]
