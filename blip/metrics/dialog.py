"""Visual dialog metrics: the rank of the true answer among candidates, and NDCG of relevances (arXiv 1611.08669)."""

from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from torch import Tensor

from blip.metrics.retrieval import KS


def ranking(scores: Tensor) -> Tensor:
    """Returns the rank `(N,)` of each candidate, from 1, by its score; of equal ones the first in order is first."""
    ranks = torch.empty(len(scores), dtype=torch.long)
    ranks[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1)
    return ranks


def rank_of(scores: Tensor, correct: int) -> int:
    """Returns the rank, from 1, of the correct candidate; others with an equal score are before it.

    Raises ValueError if a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError("dialog scores: some are not a number; has the model diverged?")
    return int((scores >= scores[correct]).sum())


def ndcg(scores: Tensor, relevance: Tensor) -> float:
    """Returns the normalised discounted cumulative gain, 0 to 1, of the first K candidates by score.

    K is the number of candidates with a relevance above 0, as in the challenge. Equal scores keep their order.
    Raises ValueError if no candidate is relevant.
    """
    count = int((relevance > 0).sum())
    if not count:
        raise ValueError("NDCG: no candidate is relevant")
    discounts = 1 / torch.log2(torch.arange(2, count + 2, dtype=torch.float64))
    gain = relevance.double()[scores.argsort(descending=True, stable=True)[:count]] @ discounts
    best = relevance.double().sort(descending=True).values[:count] @ discounts
    return float(gain / best)


def dialog_scores(ranks: Sequence[int], gains: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yields MRR, R@1, 5, 10 and NDCG in percent, and the mean rank, given ranks from 1 and NDCGs; what is known."""
    if ranks:
        found = torch.tensor(ranks, dtype=torch.float64)
        yield "mrr", 100 * float((1 / found).mean())
        yield from ((f"r{k}", 100 * float((found <= k).double().mean())) for k in KS)
        yield "mean_rank", float(found.mean())
    if gains:
        yield "ndcg", 100 * sum(gains) / len(gains)


def random_order_scores(sizes: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Yields the mean scores of random orders, as `dialog_scores` without NDCG, given the number of candidates of each
    round, one of which is true.
    """
    if sizes:
        yield "mrr", 100 * mean(sum(1 / rank for rank in range(1, size + 1)) / size for size in sizes)
        yield from ((f"r{k}", 100 * mean(min(k, size) / size for size in sizes)) for k in KS)
        yield "mean_rank", mean((size + 1) / 2 for size in sizes)
