"""Retrieval: how often what belongs to a query stands among the first K."""

import torch
from torch import Tensor

KS = (1, 5, 10)
CHUNK = 512
"""Queries ranked together; what it takes beside the scores stays small."""


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """The place `(Q,)` of each query's best own candidate, 0 for the first.

    `scores` `(Q, N)`, higher is better; `own` `(Q, N)` is True where a candidate belongs to the query. A candidate of others with the
    same score stands before: a model that scores everything alike finds nothing.
    Raises ValueError where a query has no own candidate, or a score is no number.
    """
    if scores.isnan().any():
        raise ValueError(f"retrieval scores: {int(scores.isnan().sum())} of {scores.numel()} are not a number; has the model diverged?")
    if not own.any(1).all():
        raise ValueError(f"retrieval: query {int((~own.any(1)).nonzero()[0])} has no candidate of its own, each needs one at least")
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~own).sum(1)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """R@K in percent: the share of ranks `(Q,)`, counted from 0, below K."""
    return 100 * (ranks < k).double().mean().item()


def recalls(image_scores: Tensor, text_scores: Tensor, owner: Tensor) -> dict[str, float]:
    """R@1, 5, 10 in percent of text retrieval (`tr1`, ...) and image retrieval (`ir1`, ...), and the `mean` of the six (BLIP, section 5.1).

    `image_scores` `(I, T)` ranks the texts of each image, `text_scores` `(T, I)` the images of each text, `owner` `(T,)` is the image
    that a text belongs to. An image's texts count by the best of them.
    """
    images, texts = image_scores.shape
    if text_scores.shape != (texts, images) or owner.shape != (texts,):
        given = f"{tuple(image_scores.shape)}, {tuple(text_scores.shape)} and {tuple(owner.shape)}"
        raise ValueError(f"retrieval: scores and owners must have shapes (I, T), (T, I) and (T,), not {given}")
    queries = torch.arange(images, device=owner.device)
    text_ranks = torch.cat([ranks(s, q[:, None] == owner) for s, q in zip(image_scores.split(CHUNK), queries.split(CHUNK), strict=True)])
    image_ranks = torch.cat([ranks(s, o[:, None] == queries) for s, o in zip(text_scores.split(CHUNK), owner.split(CHUNK), strict=True)])
    result = {f"tr{k}": recall_at_k(text_ranks, k) for k in KS} | {f"ir{k}": recall_at_k(image_ranks, k) for k in KS}
    return result | {"mean": sum(result.values()) / len(result)}
