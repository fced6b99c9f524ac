"""Ranks of true answers and gains of relevant ones, by hand."""

import math

import pytest
import torch

from blip.metrics.dialog import dialog_scores, ndcg, rank_of, ranking

SCORES = torch.tensor([0.1, 0.9, 0.5, 0.7])


def test_ranks_by_hand():
    assert ranking(SCORES).tolist() == [4, 1, 3, 2]
    assert [rank_of(SCORES, i) for i in range(4)] == [4, 1, 3, 2]
    assert ranking(torch.zeros(3)).tolist() == [1, 2, 3]


def test_a_model_that_scores_all_candidates_alike_ranks_the_true_one_last():
    assert rank_of(torch.zeros(100), 0) == 100


def test_the_gain_of_the_first_k_by_hand():
    """Two candidates are relevant, so the first two by score count: the second-best has 0.5, the best has none."""
    relevance = torch.tensor([1.0, 0.0, 0.0, 0.5])
    assert ndcg(SCORES, relevance) == pytest.approx(0.5 / math.log2(3) / (1 + 0.5 / math.log2(3)))
    assert ndcg(torch.tensor([9.0, 1, 2, 8]), relevance) == pytest.approx(1)
    with pytest.raises(ValueError, match="no candidate is relevant"):
        ndcg(SCORES, torch.zeros(4))


def test_scores_over_rounds_by_hand():
    assert dict(dialog_scores([1, 2, 10, 20], [1.0, 0.5])) == pytest.approx(
        {"mrr": 100 * (1 + 0.5 + 0.1 + 0.05) / 4, "r1": 25, "r5": 50, "r10": 75, "mean_rank": 8.25, "ndcg": 75}
    )
    assert dict(dialog_scores([], [])) == {}


def test_a_diverged_model_is_named():
    with pytest.raises(ValueError, match="not a number"):
        rank_of(torch.tensor([math.nan, 1.0]), 1)
