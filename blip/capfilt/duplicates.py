"""Near duplicates of images by perceptual hash, in linear time for data as found on the web."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, pairwise
from math import ceil, comb

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
PAIRS_AT_ONCE = 1 << 21
"""Pairs compared at once."""
SMALL = 1024
"""Sets of at most this many hashes are never split."""
CANDIDATES = 64
"""Candidate pairs per hash; a set with more is split, and its first half settled before the second."""
CLOSE = 1 << 20
"""Close pairs held in memory; a set with more is split in the same way."""
SEARCH_THREADS = 2

Hashes = NDArray[np.uint64]
RowNumbers = NDArray[np.int64]
Key = Callable[[Hashes], NDArray[np.uint64]]
"""Extracts some bits of each hash, as a number below 2^32."""


def near_duplicates(hashes: Hashes, bits: int) -> NDArray[np.bool_]:
    """Returns whether each hash `(N,)` is within `bits` bits of an earlier one that is no near duplicate itself.

    Multi-index hashing (Norouzi et al. 2012): of `bits + n` bands at least `n` are equal in such a pair, so only
    hashes that share `n` bands are compared. If too many share them, because many images are alike, the first half is
    settled first: a hash that is near to a kept one is compared with no other.
    """
    first = np.sort(np.unique(hashes, return_index=True)[1])  # later equal hashes change nothing for others
    found = np.ones(len(hashes), dtype=bool)
    found[first] = Search(shuffled_bits(hashes[first]), bits).run() if bits else False
    return found


class Search:
    """Finds near duplicates among distinct hashes `(N,)`, in order."""

    def __init__(self, hashes: Hashes, bits: int):
        self.hashes, self.bits = hashes, bits
        self.keys = keys(len(hashes), bits)
        self.near = np.zeros(len(hashes), dtype=bool)

    def run(self) -> NDArray[np.bool_]:
        with ThreadPoolExecutor(SEARCH_THREADS) as self.pool:
            self.settle(np.arange(len(self.hashes)))
        return self.near

    def settle(self, rows: RowNumbers) -> None:
        """Marks near duplicates among `rows`, in order; earlier rows outside of `rows` are already accounted for."""
        if not len(rows):
            return
        pairs = self.pairs_within(rows)
        if pairs is not None:
            for later, earlier in pairs.tolist():
                self.near[later] |= not self.near[earlier]
            return
        begin, rest = np.split(rows, [len(rows) // 2])
        self.settle(begin)
        kept = begin[~self.near[begin]]
        self.mark_near(rest, kept)
        self.settle(rest[~self.near[rest]])

    def pairs_within(self, rows: RowNumbers) -> RowNumbers | None:
        """Returns close pairs `(P, 2)` of (later, earlier) rows, sorted by the later one; None if too many."""
        hashes = self.hashes[rows]
        small = len(rows) <= SMALL
        if not small and sum(self.pool.map(partial(count_pairs, hashes), self.keys)) > CANDIDATES * len(rows):
            return None
        found: list[NDArray[np.uint64]] = []
        total = 0
        for close in self.pool.map(partial(close_within, hashes, self.bits), self.keys):
            found.append(close)
            total += len(close)
            if total > CLOSE and not small:
                return None
        pairs = np.sort(np.concatenate(found))
        pairs = pairs[np.diff(pairs, prepend=~pairs[:1]) != 0]  # a pair may have several equal keys
        return np.stack([rows[pairs >> np.uint64(32)], rows[pairs & np.uint64(0xFFFFFFFF)]], axis=1)

    def mark_near(self, rows: RowNumbers, kept: RowNumbers) -> None:
        """Marks the rows that are near to one of the kept rows."""
        for key in self.keys:
            rows = rows[~self.near[rows]]
            self.near[rows] = close_to_any(self.hashes[rows], self.hashes[kept], self.bits, key)


def close_within(hashes: Hashes, bits: int, key: Key) -> NDArray[np.uint64]:
    """Returns pairs of positions of close hashes with equal keys: the later in the upper 32 bits, the earlier below."""
    found = [np.empty(0, dtype=np.uint64)]
    for one, other in close_pairs(hashes, bits, key):
        found.append(np.maximum(one, other) << np.uint64(32) | np.minimum(one, other))
    return np.concatenate(found)


def close_pairs(hashes: Hashes, bits: int, key: Key) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Yields the positions of pairs of close hashes with equal keys, some at a time."""
    keys, order = sorted_by_key(hashes, key)
    values = hashes[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] + 1))
    ends = np.append(starts[1:], len(keys))
    end_of_run = np.repeat(ends, ends - starts)
    for left, right in ranges_in_chunks(np.arange(1, len(keys) + 1), end_of_run):
        close = np.bitwise_count(values[left] ^ values[right]) <= bits
        yield order[left[close]], order[right[close]]


def near_groups(hashes: Hashes, bits: int) -> Hashes:
    """Returns for each hash `(N,)` the smallest hash of its group, whatever the order of the hashes.

    Hashes within `bits` bits of each other are in one group, and so are all that a chain of such pairs connects.
    """
    distinct, place = np.unique(hashes, return_inverse=True)
    if not bits or len(distinct) < 2:
        return hashes.copy()
    first = np.arange(len(distinct))
    shuffled = shuffled_bits(distinct)
    for key in keys(len(distinct), bits):
        for one, other in close_pairs(shuffled, bits, key):
            first = connected(first, one.astype(np.int64), other.astype(np.int64))
    return distinct[first][place]


def connected(first: RowNumbers, one: RowNumbers, other: RowNumbers) -> RowNumbers:
    """Returns for each row `(N,)` the first row of its group, after the pairs of rows are connected."""
    while True:
        apart = first[one] != first[other]
        if not apart.any():
            return first
        one, other = one[apart], other[apart]
        left, right = first[one], first[other]
        np.minimum.at(first, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(first, flat := first[first]):
            first = flat


def close_to_any(hashes: Hashes, others: Hashes, bits: int, key: Key) -> NDArray[np.bool_]:
    """Returns whether each hash is close to one of `others` with an equal key."""
    keys, order = sorted_by_key(hashes, key)
    other_keys, other_order = sorted_by_key(others, key)
    values, other_values = hashes[order], others[other_order]
    found = np.zeros(len(hashes), dtype=bool)
    for left, right in ranges_in_chunks(
        np.searchsorted(other_keys, keys, "left"), np.searchsorted(other_keys, keys, "right")
    ):
        close = np.bitwise_count(values[left] ^ other_values[right]) <= bits
        found[order[left[close]]] = True
    return found


def ranges_in_chunks(starts: RowNumbers, ends: RowNumbers) -> Iterator[tuple[RowNumbers, RowNumbers]]:
    """Yields the pairs of `i` and `range(starts[i], ends[i])` for all `i`, about PAIRS_AT_ONCE at a time."""
    counts = ends - starts
    total = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, "right")))
        some = counts[begin:end]
        left = np.repeat(np.arange(begin, end), some)
        shift = np.repeat(starts[begin:end] - (total[begin:end] - some - before), some)
        yield left, np.arange(len(left)) + shift
        begin = end


def sorted_by_key(hashes: Hashes, key: Key) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Returns the sorted keys and the position of each."""
    both = key(hashes) << np.uint64(32) | np.arange(len(hashes), dtype=np.uint64)
    both.sort()
    return both >> np.uint64(32), both & np.uint64(0xFFFFFFFF)


def count_pairs(hashes: Hashes, key: Key) -> int:
    """Returns the number of pairs with equal keys."""
    found = np.sort(key(hashes).astype(np.uint32))
    starts = np.flatnonzero(np.diff(found, prepend=found[:1] + np.uint32(1)))
    runs = np.diff(starts, append=len(found))
    return int((runs * (runs - 1) // 2).sum())


def keys(count: int, bits: int) -> list[Key]:
    """Returns the cheapest keys for `count` hashes such that hashes within `bits` bits have at least one key equal."""
    numbers = [n for n in range(1, bits + 1) if n * ceil(HASH_BITS / (bits + n)) <= 32]
    equal = min(numbers, key=lambda n: search_cost(count, bits, n))
    edges = np.linspace(0, HASH_BITS, bits + equal + 1).astype(int)
    return [partial(of_bands, bands=bands) for bands in combinations(list(pairwise(edges.tolist())), equal)]


def search_cost(count: int, bits: int, equal: int) -> float:
    """Estimates the cost of a search with keys of `equal` bands for uniform hashes: sorting and comparing per key."""
    width = HASH_BITS * equal // (bits + equal)
    return comb(bits + equal, equal) * (10 * count + count**2 / 2 ** (width + 1))


def of_bands(hashes: Hashes, bands: tuple[tuple[int, int], ...]) -> NDArray[np.uint64]:
    """Concatenates the bits of bands `(start, end)`."""
    found = np.zeros(len(hashes), dtype=np.uint64)
    for start, end in bands:
        found <<= np.uint64(end - start)
        found |= (hashes >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
    return found


def shuffled_bits(hashes: Hashes) -> Hashes:
    """Permutes the bits of all hashes alike, so that correlated bits go to several bands."""
    places = np.random.default_rng(0).permutation(HASH_BITS).astype(np.uint64)
    found = np.zeros(len(hashes), dtype=np.uint64)
    for byte in range(8):
        bits = np.arange(256, dtype=np.uint64)[:, None] >> np.arange(8, dtype=np.uint64) & np.uint64(1)
        table = np.bitwise_or.reduce(bits << places[8 * byte : 8 * byte + 8], axis=1)
        found |= table[hashes >> np.uint64(8 * byte) & np.uint64(0xFF)]
    return found
