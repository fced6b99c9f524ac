"""Retrieval metrics: recall at K in both directions."""

from collections.abc import Sequence
from math import comb
from statistics import mean

import torch
from torch import Tensor

KS = (1, 5, 10)
CHUNK = 512
"""Queries that are ranked at a time, which bounds temporary memory."""


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Returns the rank `(Q,)` of each query's best positive candidate, from 0.

    `scores` `(Q, N)`: higher is better. `own` `(Q, N)` is True for a query's positives. Negatives with an equal score
    rank first, so that a model with constant scores recalls nothing.
    Raises ValueError if a query has no positive, or a score is NaN.
    """
    if scores.isnan().any():
        count = int(scores.isnan().sum())
        raise ValueError(f"retrieval scores: {count} of {scores.numel()} are not a number; has the model diverged?")
    if not own.any(1).all():
        query = int((~own.any(1)).nonzero()[0])
        raise ValueError(f"retrieval: query {query} has no candidate of its own, each needs one at least")
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~own).sum(1)


def ranks_by_group(scores: Tensor, query_groups: Tensor, candidate_groups: Tensor) -> Tensor:
    """As `ranks`, in chunks; a candidate is a positive of queries of its group, given as `(Q,)` and `(N,)`."""
    chunks = zip(scores.split(CHUNK), query_groups.split(CHUNK), strict=True)
    return torch.cat([ranks(chunk, groups[:, None] == candidate_groups) for chunk, groups in chunks])


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Returns R@K in percent: the share of ranks `(Q,)`, which count from 0, below K."""
    return 100 * (ranks < k).double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """Returns the median, counted from 1, of ranks `(Q,)`, which count from 0; of two middle ones their mean."""
    return 1 + ranks.double().quantile(0.5).item()


def recalls(image_scores: Tensor, text_scores: Tensor, owner: Tensor) -> dict[str, float]:
    """Returns R@1, 5, 10 in percent of text retrieval (`tr1`, ...) and image retrieval (`ir1`, ...), and their `mean`.

    `image_scores` `(I, T)` rank the texts of each image, `text_scores` `(T, I)` the images of each text; `owner` `(T,)`
    is the image of each text. An image's rank is that of its best text (BLIP, section 5.1).
    Raises ValueError if shapes do not agree, and as `ranks`.
    """
    images, texts = image_scores.shape
    if text_scores.shape != (texts, images) or owner.shape != (texts,):
        given = f"{tuple(image_scores.shape)}, {tuple(text_scores.shape)} and {tuple(owner.shape)}"
        raise ValueError(f"retrieval: scores and owners must have shapes (I, T), (T, I) and (T,), not {given}")
    queries = torch.arange(images, device=owner.device)
    return summary(ranks_by_group(image_scores, queries, owner), ranks_by_group(text_scores, owner, queries))


def summary(text_ranks: Tensor, image_ranks: Tensor) -> dict[str, float]:
    """Returns the scores of `recalls`, given the ranks of each image's best own text and of each text's own image."""
    result = {f"tr{k}": recall_at_k(text_ranks, k) for k in KS} | {f"ir{k}": recall_at_k(image_ranks, k) for k in KS}
    return result | {"mean": sum(result.values()) / len(result)}


def random_order(own: Sequence[int]) -> dict[str, float]:
    """Returns the mean of `summary` over random orders, given the number of texts of each image.

    An image misses its T texts among the first K of N with probability C(N - T, K) / C(N, K).
    """
    images, texts = len(own), sum(own)
    result = {f"tr{k}": 100 * mean(1 - comb(texts - n, k) / comb(texts, min(k, texts)) for n in own) for k in KS}
    result |= {f"ir{k}": 100 * min(k, images) / images for k in KS}
    return result | {"mean": mean(result.values())}
