"""Values and images that come more than once."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64


def first_of_each(values: NDArray) -> NDArray[np.int64]:
    """For each value `(N,)` the position of its first occurrence."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def near_duplicates(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    """Whether a hash `(N,)` differs in at most `bits` bits from an earlier one that is no near duplicate itself."""
    first = np.sort(np.unique(hashes, return_index=True)[1])  # of equal hashes only the first can matter to others
    distinct = hashes[first]
    found = np.zeros(len(distinct), dtype=bool)
    pairs = np.unique(np.concatenate([np.empty((0, 2), dtype=np.int64), *close_pairs(distinct, bits)]), axis=0)
    for later, earlier in pairs.tolist():
        found[later] |= not found[earlier]
    result = np.ones(len(hashes), dtype=bool)
    result[first] = found
    return result


def close_pairs(hashes: NDArray[np.uint64], bits: int) -> Iterator[NDArray[np.int64]]:
    """Pairs `(P, 2)` of positions, the later one first, whose hashes differ in at most `bits` bits; a pair may come twice.

    Of `bits + 1` bands at least one must be equal in such a pair, so hashes are sorted by each band and compared with their neighbours.
    """
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(np.uint64)
    for start, end in pairwise(edges):
        band = (hashes >> start) & np.uint64((1 << int(end - start)) - 1)
        order = np.argsort(band, kind="stable")
        band, values = band[order], hashes[order]
        left = np.arange(len(order))
        for distance in range(1, len(order)):
            left = left[left + distance < len(order)]
            left = left[band[left] == band[left + distance]]
            if not len(left):
                break
            close = left[np.bitwise_count(values[left] ^ values[left + distance]) <= bits]
            both = np.stack([order[close], order[close + distance]], axis=1)
            yield np.stack([both.max(axis=1), both.min(axis=1)], axis=1)
