"""Writes a selection as a data set: the input's tars with indexes of the kept texts."""

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.capfilt.cutoffs import with_values
from blip.capfilt.pairs import map_ahead
from blip.capfilt.rules import OF_CAPTIONER, Combined, SelectionConfig, score_columns
from blip.capfilt.scores import Scores
from blip.capfilt.selection import SELECTION_COLUMNS, Selection, select_texts
from blip.config import ConfigError
from blip.shards.index import Index
from blip.shards.manifest import ANONYMOUS, Manifest, Shard
from blip.storage import Store
from blip.workers.queue import READERS

VISITED_COLUMNS = ["key", "members", "source", "number", "text"]
"""The columns of the table of scores that are read after the decision, besides the score that is shown."""

Visit = Callable[[Shard, pa.Table, NDArray[np.int8]], None]
"""Called for each shard with VISITED_COLUMNS of its table, the score to show as `score`, and the position in REASONS
`(rows,)` of each text."""


def write_selection(scores: Scores, cfg: SelectionConfig, revision: str, visit: Visit = lambda *_: None) -> Manifest:
    """Selects among a job's texts, writes indexes of the kept ones beside its tables, and returns their manifest.

    Reads each table twice, but no image and no model. Raises ShardError if a table is missing or altered.
    """
    scored = scores.job.config.scored
    columns = score_columns(cfg.rule)
    if scored:
        of_captioner = {OF_CAPTIONER} if isinstance(cfg.rule, Combined) else set()
        check_scores([name for name in columns if name not in of_captioner], scores.given())
    settled = with_values(cfg, scores.tables) if scored else cfg
    needed = [*SELECTION_COLUMNS, *(columns if scored else ())]
    shown = columns[0] if scored else "match"
    selection = select_texts(scores.tables(needed), settled, scored)
    with ThreadPoolExecutor(READERS) as pool:
        parts = map_ahead(
            pool,
            lambda part: write_index(scores.store, *part),
            indexes(scores, selection, shown, visit),
            READERS,
        )
        shards = tuple(shard for shard in parts if shard.samples)
    job = scores.job
    return Manifest(
        name=job.input.name,
        root=job.input.root,
        shards=shards,
        parents=(job.input.digest,),
        revision=revision,
        counts={
            **selection.counts,
            **{f"rejected.{reason}": number for reason, number in sorted(scores.rejected.items())},
            "shards": len(scores.done),
            "shards.dead": len(scores.dead),
        },
        meta={
            **{name: value for name, value in job.input.meta.items() if name in ("judge", ANONYMOUS)},
            "job": job.identity,
            **job.digests,
            "selection": cfg.model_dump(mode="json"),
            **({"cutoffs": settled.rule.model_dump(mode="json")} if settled != cfg else {}),
            "dead": sorted(scores.dead),
        },
    )


def check_scores(needed: Collection[str], given: Collection[str]) -> None:
    """Raises ConfigError if a rule needs a score that no filter gave."""
    missing = [name for name in needed if given and name not in given]
    if missing:
        raise ConfigError(
            f"rule: needs the score {missing[0]!r}, but the filters gave {', '.join(given)}; name one of these, as in "
            f"blip select --threshold 30% --by {next(iter(given))}"
        )


def indexes(scores: Scores, selection: Selection, shown: str, visit: Visit) -> Iterator[tuple[Shard, Index]]:
    """Yields each shard with the index of its kept texts."""
    begin = 0
    names = [*VISITED_COLUMNS, "score"]
    for shard, found in zip(scores.shards, scores.tables([*VISITED_COLUMNS, shown]), strict=True):
        table = found.rename_columns(names)
        reasons = selection.reasons[begin : begin + len(table)]
        begin += len(table)
        visit(shard, table, reasons)
        yield shard, index_of(table.filter(pa.array(reasons == 0)))


def index_of(rows: pa.Table) -> Index:
    """Returns the index of the samples in `rows`, with their texts."""
    cells = zip(*(rows[name].to_pylist() for name in ("key", "members", "text")), strict=True)
    lines = [
        f"[{json.dumps(key)},{members},{json.dumps([text for *_, text in of_sample])}]\n"
        for (key, members), of_sample in groupby(cells, itemgetter(0, 1))
    ]
    return Index("".join(lines).encode())


def write_index(store: Store, shard: Shard, index: Index) -> Shard:
    """Writes an index and returns the shard with it. Its name ends in its digest, so none is overwritten."""
    if not len(index):
        return shard.model_copy(update={"samples": 0})
    name = f"selection/{shard.name.removesuffix('.tar')}-{index.digest[:16]}.idx.jsonl"
    store.put(name, index.lines)
    seen = {"samples": len(index), "index": name, "index_root": store.uri, "index_sha256": index.digest}
    return shard.model_copy(update=seen)
