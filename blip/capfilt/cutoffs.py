"""Turns a share of texts, or a precision, into the score from which on texts are kept, over a whole data set."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.special import ndtr, ndtri

from blip.capfilt.rules import (
    Combined,
    Limit,
    SelectionConfig,
    SumLimit,
    Weighted,
    faulty,
    is_web,
    score_column,
    score_columns,
    weighted_sums,
)
from blip.capfilt.table import decoy_column
from blip.logs import log
from blip.results import SOURCES, Source

Tables = Callable[[list[str]], Iterable[pa.Table]]
"""Maps columns to the tables of all shards, reduced to them."""


ScoreLists = dict[str, list[NDArray[np.float32]]]
"""Scores by column, in the order of the tables."""


def with_values(cfg: SelectionConfig, tables: Tables) -> SelectionConfig:
    """Returns the selection with a value in place of each share and precision; reads the scores once if there is one.

    Holds four bytes of each score in memory.
    """
    match cfg.rule:
        case Combined() as rule if any(limit.least is None for limit in (*rule.web, *rule.synthetic)):
            scores = read_scores(cfg, rule, tables)
            limits: dict[str, Any] = {
                source: tuple(with_value(limit, scores[source]) for limit in getattr(rule, source))
                for source in SOURCES
            }
        case Weighted() as rule if rule.web.least is None or rule.synthetic.least is None:
            sums = read_sums(cfg, rule, tables)
            limits = {source: with_least(getattr(rule, source), joined(sums[source])) for source in SOURCES}
        case _:
            return cfg
    return cfg.model_copy(update={"rule": rule.model_copy(update=limits)})


def read_sums(cfg: SelectionConfig, rule: Weighted, tables: Tables) -> dict[Source, list[NDArray[np.float32]]]:
    """Returns the weighted sums by source of the texts that no fault drops."""
    found: dict[Source, list[NDArray[np.float32]]] = {source: [] for source in SOURCES}
    for table in tables(["source", "faults", *rule.weights]):
        sums = weighted_sums(table, rule)
        for source, rows in by_source(is_web(table), (faulty(table, cfg) == 0) & ~np.isnan(sums)):
            found[source].append(sums[rows])
    return found


def with_least(limit: SumLimit, sums: NDArray[np.float32]) -> SumLimit:
    """Returns a limit of sums, ascending, with the value that leaves its share of them."""
    return limit if limit.share is None else SumLimit(least=least_of(sums, count_of(limit.share, len(sums))))


def read_scores(cfg: SelectionConfig, rule: Combined, tables: Tables) -> dict[Source, ScoreLists]:
    """Returns the scores by source and column of the texts that no fault drops, and what decoys needs to be read."""
    decoys = {decoy_column(limit.score) for limit in rule.web if limit.precision is not None}
    columns = [*score_columns(rule), *sorted(decoys)]
    found: dict[Source, ScoreLists] = {source: {column: [] for column in columns} for source in SOURCES}
    for table in tables(["source", "faults", *columns]):
        web, sound = is_web(table), faulty(table, cfg) == 0
        for source, rows in by_source(web, sound):
            for column in columns:
                scores = score_column(table, column)[rows]
                found[source][column].append(scores[~np.isnan(scores)])
    return found


def by_source(web: NDArray[np.bool_], sound: NDArray[np.bool_]) -> Iterator[tuple[Source, NDArray[np.bool_]]]:
    yield "web", web & sound
    yield "synthetic", ~web & sound


def with_value(limit: Limit, values: ScoreLists) -> Limit:
    """Returns a limit with the value that leaves its share, or its precision, of the texts of a source."""
    if limit.least is not None:
        return limit
    scores = joined(values[limit.score])
    if limit.share is not None:
        kept = count_of(limit.share, len(scores))
    else:
        decoys = joined(values[decoy_column(limit.score)])
        kept = count_precise(scores, decoys, limit.precision or 0.0)
        log.info("%s: %d of %d texts are kept for a precision of %g", limit.score, kept, len(scores), limit.precision)
    return Limit(score=limit.score, least=least_of(scores, kept))


def count_of(share: float, total: int) -> int:
    return math.floor(share * total + 1e-9)  # 0.3 of 10 is 3, which arithmetic makes 2.9999999


def least_of(scores: NDArray[np.float32], kept: int) -> float:
    """Returns the score from which on the `kept` best of ascending scores are."""
    if kept:
        return float(scores[len(scores) - kept])
    return float(np.nextafter(scores[-1], np.float32(np.inf))) if len(scores) else 0.0


def joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns all scores in ascending order."""
    return np.sort(np.concatenate([np.empty(0, dtype=np.float32), *parts]))


def count_precise(scores: NDArray[np.float32], decoys: NDArray[np.float32], precision: float) -> int:
    """Returns how many of the best texts can be kept so that a share `precision` of them is estimated to be true.

    `scores` `(N,)` are those of texts, true and wrong, `decoys` `(M,)` those of wrong pairs, both ascending. The number
    of wrong texts that pass a threshold is estimated from the decoys that pass it (`Wrong`); with one decoy more than
    there are, a few lucky texts are not believed (target-decoy counting of proteomics; Elias and Gygi, 2007).
    """
    if not len(scores) or not len(decoys):
        return 0
    wrong = Wrong.among(scores, decoys)
    passing = wrong.passing(np.arange(1, len(decoys) + 2) / (len(decoys) + 1))
    above = len(decoys) - np.searchsorted(decoys, scores, side="left")
    kept = len(scores) - np.searchsorted(scores, scores, side="left")
    enough = np.flatnonzero(wrong.share * len(scores) * passing[above] <= (1 - precision) * kept)
    return int(kept[enough[0]]) if len(enough) else 0


class Wrong(NamedTuple):
    """What the scores of decoys tell about those of wrong texts."""

    share: float
    """Of the texts, 0 to 1."""
    lead: float
    """By how many standard deviations wrong texts score higher than decoys, on a scale where decoys are normal.

    A training has seen the wrong texts with their images, but no decoy."""

    @classmethod
    def among(cls, scores: NDArray[np.float32], decoys: NDArray[np.float32]) -> "Wrong":
        """Returns the estimate of scores of texts `(N,)` and of decoys `(M,)`, both ascending.

        Up to the decoys' median true texts are few (Storey, 2002); how many texts there are in the lowest tenth of
        decoys tells the lead. The few true ones make both estimates rather too high, so that less is kept than could
        be, not more.
        """
        marks = decoys[[len(decoys) // 10, len(decoys) // 2]]
        texts = (np.searchsorted(scores, marks, side="right") + 1) / (len(scores) + 1)
        of_decoys = np.searchsorted(decoys, marks, side="right") / len(decoys)
        leads = np.arange(0.0, MOST_LEAD, 0.005)
        low, middle = (share_below(share, leads) for share in of_decoys)
        best = int(np.argmin(np.abs(low / middle - texts[0] / texts[1])))
        return cls(min(1.0, float(texts[1] / middle[best])), float(leads[best]))

    def passing(self, decoys: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the shares of wrong texts that pass thresholds which these shares of decoys pass."""
        return 1 - share_below(1 - decoys, self.lead)


MOST_LEAD = 1.0
"""The largest lead that is tried; of models that had learnt the wrong texts well it was 0.4."""


def share_below(decoys: NDArray[np.float64] | float, leads: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Returns the shares of wrong texts below thresholds which these shares of decoys are below."""
    return ndtr(ndtri(torch.as_tensor(decoys)) - torch.as_tensor(leads)).numpy()
