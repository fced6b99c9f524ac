"""A selection as a data set: the input's own tars, seen through indexes of the texts that were kept."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.capfilt.pairs import map_ahead
from blip.capfilt.rules import SelectionConfig
from blip.capfilt.scores import Scores
from blip.capfilt.selection import SELECTION_COLUMNS, Selection, select_texts
from blip.data.index import Index
from blip.data.manifest import Manifest, Shard
from blip.storage import Store
from blip.workers.queue import READERS

VISITED_COLUMNS = ["key", "members", "source", "number", "text", "match"]
"""What is read of the tables once everything is decided."""

Visit = Callable[[Shard, pa.Table, NDArray[np.int8]], None]
"""Hears of each shard: its table's columns VISITED_COLUMNS, and for each row the position in REASONS of why it is dropped."""


def write_selection(scores: Scores, cfg: SelectionConfig, revision: str, visit: Visit = lambda *_: None) -> Manifest:
    """Selects among a job's texts and writes indexes of those kept beside its tables; reads tables twice, no image and no model.

    Raises ShardError where a table is missing or altered.
    """
    selection = select_texts(scores.tables(SELECTION_COLUMNS), cfg, scores.job.config.scored)
    with ThreadPoolExecutor(READERS) as pool:
        parts = map_ahead(
            pool, lambda part: write_index(scores.store, *part), indexes(scores, selection, visit), READERS
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
            **{name: value for name, value in job.input.meta.items() if name == "judge"},
            "job": job.identity,
            **job.digests,
            "selection": cfg.model_dump(mode="json"),
            "dead": sorted(scores.dead),
        },
    )


def indexes(scores: Scores, selection: Selection, visit: Visit) -> Iterator[tuple[Shard, Index]]:
    """An index of what was kept for each shard."""
    begin = 0
    for shard, table in zip(scores.shards, scores.tables(VISITED_COLUMNS), strict=True):
        reasons = selection.reasons[begin : begin + len(table)]
        begin += len(table)
        visit(shard, table, reasons)
        yield shard, index_of(table.filter(pa.array(reasons == 0)))


def index_of(rows: pa.Table) -> Index:
    """The index of the samples that have rows, with the texts of these."""
    cells = zip(*(rows[name].to_pylist() for name in ("key", "members", "text")), strict=True)
    lines = [
        f"[{json.dumps(key)},{members},{json.dumps([text for *_, text in of_sample])}]\n"
        for (key, members), of_sample in groupby(cells, itemgetter(0, 1))
    ]
    return Index("".join(lines).encode())


def write_index(store: Store, shard: Shard, index: Index) -> Shard:
    """Writes an index and returns the shard seen through it. The name ends in the index's digest, so none is ever changed."""
    if not len(index):
        return shard.model_copy(update={"samples": 0})
    name = f"selection/{shard.name.removesuffix('.tar')}-{index.digest[:16]}.idx.jsonl"
    store.put(name, index.lines)
    seen = {"samples": len(index), "index": name, "index_root": store.uri, "index_sha256": index.digest}
    return shard.model_copy(update=seen)
