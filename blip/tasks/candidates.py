"""The pairs that ITM scores in retrieval, and the ranks by its scores, in memory that is bounded for any split.

Similarities are computed for some queries at a time: nothing of images times texts is ever held. What is held grows
with `(I + T) x candidates`, besides the features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from blip.metrics.retrieval import ranks

ENTRIES = 1 << 22
"""Similarities that are computed at a time."""
GAP = 4.0
"""Distance of the best unscored pair below the worst ITM logit; similarities are between -1 and 1."""


def parts(queries: Tensor, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields similarities `(part, N)` of queries `(Q, E)` and keys `(N, E)`, each with its first query's position.

    Queries or keys with several vectors, `(Q, V, E)`, are compared by the most similar one.
    """
    keys = keys.float()
    vectors = max(queries.shape[1] if queries.dim() == 3 else 1, keys.shape[1] if keys.dim() == 3 else 1)
    size = max(1, ENTRIES // max(1, len(keys) * vectors))
    for first in range(0, len(queries), size):
        yield first, best_similarity(queries[first : first + size].float(), keys)


def best_similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """Returns similarities `(Q, N)` of queries `(Q, E)` and keys `(N, E)`, one of which may have several vectors."""
    if keys.dim() == 3:
        return (queries @ keys.flatten(0, 1).T).unflatten(1, keys.shape[:2]).amax(2)
    similarity = queries @ keys.T
    return similarity.amax(1) if queries.dim() == 3 else similarity


def nearest(queries: Tensor, keys: Tensor, count: int) -> Tensor:
    """Returns the positions `(Q, C)`, int32, of each query's C = min(count, N) most similar keys."""
    count = min(count, len(keys))
    return torch.cat([similarity.topk(count, dim=1).indices.int() for _, similarity in parts(queries, keys)])


class Candidates:
    """The pairs that ITM scores: of each image its `count` nearest texts, and of each text its nearest images."""

    def __init__(self, images: Tensor, texts: Tensor, count: int):
        self.texts_of_images = nearest(images, texts, count)
        images_of_texts = nearest(texts, images, count)
        by_image = images_of_texts.flatten().argsort(stable=True)
        self.texts_by_image = (by_image // images_of_texts.shape[1]).int()
        self.ends = images_of_texts.flatten().bincount(minlength=len(images)).cumsum(0).tolist()

    def of(self, image: int) -> tuple[Tensor, Tensor]:
        """Returns the sorted positions `(C,)` of the texts that are scored with an image, and who chose each pair.

        The latter is `(2, C)`, bool: whether the text is among the image's candidates, the image among the text's.
        """
        own = self.texts_of_images[image]
        others = self.texts_by_image[self.ends[image - 1] if image else 0 : self.ends[image]]
        near = torch.cat([own, others]).unique()
        return near, torch.stack([torch.isin(near, own), torch.isin(near, others)])


@dataclass(frozen=True, eq=False)  # comparison of tensors is elementwise
class Rescored:
    """ITM logits of pairs, in the order of their queries."""

    queries: Tensor
    """`(P,)`, sorted."""
    keys: Tensor
    logits: Tensor

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, logits: Tensor) -> Self:
        order = queries.argsort(stable=True)
        return cls(queries[order], keys[order], logits[order])

    def scores(self, first: int, similarity: Tensor) -> Tensor:
        """Returns the scores of queries from `first` on, given similarities `(part, N)`: for a scored pair the logit
        plus the similarity, for all others less than that, in the order of similarity."""
        limits = torch.tensor([first, first + len(similarity)], dtype=self.queries.dtype)
        begin, end = torch.searchsorted(self.queries, limits).tolist()
        rows, columns = self.queries[begin:end].long() - first, self.keys[begin:end].long()
        found = similarity + (self.logits.min() - GAP)
        found[rows, columns] = similarity[rows, columns] + self.logits[begin:end]
        return found


def ranks_in_parts(
    queries: Tensor, keys: Tensor, query_groups: Tensor, key_groups: Tensor, rescored: Rescored | None
) -> Tensor:
    """Returns the rank `(Q,)`, from 0, of each query's best key of its own group, as `metrics.retrieval.ranks`.

    Queries `(Q, E)` and keys `(N, E)` have groups `(Q,)` and `(N,)`. Pairs are scored by similarity, or as
    `Rescored.scores`.
    """
    found = []
    for first, similarity in parts(queries, keys):
        scores = rescored.scores(first, similarity) if rescored else similarity
        found.append(ranks(scores, query_groups[first : first + len(similarity), None] == key_groups))
    return torch.cat(found)
