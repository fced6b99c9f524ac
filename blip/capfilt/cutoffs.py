"""Turns the share of texts to keep into the score from which on they are kept, over a whole data set."""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.capfilt.rules import Combined, Limit, SelectionConfig, faulty, is_web, score_column, score_columns
from blip.results import SOURCES, Source

Tables = Callable[[list[str]], Iterable[pa.Table]]
"""Maps columns to the tables of all shards, reduced to them."""


def with_values(cfg: SelectionConfig, tables: Tables) -> SelectionConfig:
    """Returns the selection with a value in place of each share; reads the scores once if there is a share.

    Holds four bytes of each score in memory.
    """
    rule = cfg.rule
    if not isinstance(rule, Combined) or all(limit.share is None for limit in (*rule.web, *rule.synthetic)):
        return cfg
    scores = read_scores(cfg, tables)
    limits = {
        source: tuple(with_value(limit, scores.get((source, limit.score), [])) for limit in getattr(rule, source))
        for source in SOURCES
    }
    return cfg.model_copy(update={"rule": rule.model_copy(update=limits)})


def read_scores(cfg: SelectionConfig, tables: Tables) -> dict[tuple[Source, str], list[NDArray[np.float32]]]:
    """Returns the scores by source and column of the texts that no fault drops."""
    columns = score_columns(cfg.rule)
    found: dict[tuple[Source, str], list[NDArray[np.float32]]] = {}
    for table in tables(["source", "faults", *columns]):
        web, sound = is_web(table), faulty(table, cfg) == 0
        for source, rows in by_source(web, sound):
            for column in columns:
                scores = score_column(table, column)[rows]
                found.setdefault((source, column), []).append(scores[~np.isnan(scores)])
    return found


def by_source(web: NDArray[np.bool_], sound: NDArray[np.bool_]) -> Iterator[tuple[Source, NDArray[np.bool_]]]:
    yield "web", web & sound
    yield "synthetic", ~web & sound


def with_value(limit: Limit, parts: list[NDArray[np.float32]]) -> Limit:
    """Returns a limit with the value that leaves its share of the scores in `parts`."""
    if limit.share is None:
        return limit
    scores = np.sort(np.concatenate([np.empty(0, dtype=np.float32), *parts]))
    kept = math.floor(limit.share * len(scores) + 1e-9)  # 0.3 of 10 is 3, which arithmetic makes 2.9999999
    if kept:
        return Limit(score=limit.score, least=float(scores[len(scores) - kept]))
    above = np.nextafter(scores[-1], np.float32(np.inf)) if len(scores) else 0
    return Limit(score=limit.score, least=float(above))
