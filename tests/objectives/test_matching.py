"""ITM: which hard negatives are drawn, how often, and the loss."""

import math

import pytest
import torch

from blip.objectives.matching import hard_negatives, matching_loss


def test_hard_negatives_are_never_the_row_itself_nor_of_its_image():
    torch.manual_seed(0)
    ids = torch.tensor([0, 0, 1, 2, 2, 3])
    allowed = ids[:, None] != ids[None, :]
    for _ in range(200):
        drawn, valid = hard_negatives(torch.randn(6, 6) * 10, allowed, floor=1e-4)
        assert valid.all()
        assert (ids[drawn] != ids).all()


def test_hard_negatives_follow_the_softmax_of_their_similarity():
    torch.manual_seed(0)
    draws = 20_000
    similarity = torch.tensor([9.0, 0.0, math.log(2), math.log(3)])
    allowed = torch.tensor([False, True, True, True])
    drawn, _ = hard_negatives(similarity.expand(draws, -1), allowed.expand(draws, -1))
    counts = drawn.bincount(minlength=4)
    expected = torch.tensor([1 / 6, 2 / 6, 3 / 6]) * draws
    chi_square = ((counts[1:] - expected) ** 2 / expected).sum()
    assert counts[0] == 0
    assert chi_square < 13.8, "above the 99.9th percentile of two degrees of freedom"


def test_the_floor_gives_the_unlikely_a_chance():
    torch.manual_seed(0)
    similarity, allowed = torch.tensor([[0.0, -100.0, -100.0]]), torch.tensor([[False, True, True]])
    drawn, _ = hard_negatives(similarity.expand(400, -1), allowed.expand(400, -1), floor=1e-4)
    assert set(drawn.tolist()) == {1, 2}


def test_a_row_whose_weights_vanish_draws_evenly_and_a_row_without_candidates_does_not_count():
    torch.manual_seed(0)
    similarity = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    allowed = torch.tensor([[False, True, True], [False, False, False]])
    drawn = [hard_negatives(similarity, allowed) for _ in range(50)]
    assert {int(candidates[0]) for candidates, _ in drawn} == {1, 2}
    assert all(valid.tolist() == [True, False] for _, valid in drawn)


def test_a_batch_of_one_has_no_negatives_and_does_not_fail():
    drawn, valid = hard_negatives(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    assert (drawn.tolist(), valid.tolist()) == ([0], [False])


def test_most_likely_takes_the_most_similar_that_is_allowed():
    similarity = torch.tensor([[5.0, 1.0, 2.0], [3.0, 9.0, 4.0]])
    drawn, _ = hard_negatives(similarity, ~torch.eye(2, 3, dtype=torch.bool), most_likely=True)
    assert drawn.tolist() == [2, 2]


def test_a_head_that_knows_only_how_many_match_has_loss_0_6365():
    logits = torch.log(torch.tensor([2 / 3, 1 / 3])).expand(12, 2)
    labels = torch.tensor([1] * 4 + [0] * 8)
    assert float(matching_loss(logits, labels, torch.ones(12, dtype=torch.bool))) == pytest.approx(0.6365, abs=1e-4)


def test_rows_that_are_not_valid_leave_the_mean():
    logits, labels = torch.tensor([[0.0, 2.0], [5.0, 0.0]]), torch.tensor([1, 1])
    loss = matching_loss(logits, labels, torch.tensor([True, False]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))
