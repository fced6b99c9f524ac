"""Turns a share of texts, or a precision, into the score from which on texts are kept, over a whole data set."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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

    `scores` `(N,)` are those of texts, true and wrong, `decoys` `(M,)` those of wrong pairs, both ascending. Wrong
    texts are taken to score as decoys do. Their number is estimated from the texts that score below the decoys' median,
    where true ones are few (Storey, 2002); with one decoy more than there are, a few lucky texts are not believed
    (target-decoy counting of proteomics; Elias and Gygi, 2007).
    """
    if not len(scores) or not len(decoys):
        return 0
    wrong = wrong_share(scores, decoys) * len(scores)
    above = len(decoys) - np.searchsorted(decoys, scores, side="left")
    passing = wrong * (above + 1) / (len(decoys) + 1)
    kept = len(scores) - np.searchsorted(scores, scores, side="left")
    enough = np.flatnonzero(passing <= (1 - precision) * kept)
    return int(kept[enough[0]]) if len(enough) else 0


def wrong_share(scores: NDArray[np.float32], decoys: NDArray[np.float32]) -> float:
    """Returns the estimated share of wrong texts, 0 to 1, of ascending scores of texts `(N,)` and decoys `(M,)`."""
    median = decoys[len(decoys) // 2]
    below = np.searchsorted(scores, median, side="right") / len(scores)
    of_decoys = np.searchsorted(decoys, median, side="right") / len(decoys)
    return min(1.0, below / of_decoys)
