"""What comes out of a job: its shards seen through a selection, which another threshold changes in seconds."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.capfilt.job import Job
from blip.capfilt.rules import SelectionConfig
from blip.capfilt.selection import select
from blip.capfilt.shard import JSON
from blip.capfilt.table import from_parquet, joined
from blip.data.index import Index
from blip.data.manifest import Manifest, Shard
from blip.data.names import Members
from blip.data.shards import ShardError
from blip.storage import Store
from blip.workers.queue import READERS, finished

SCORES, INDEX = BESIDE = (".parquet", ".idx.jsonl")
"""What lies beside each output shard."""
Record = Mapping[str, Any]
"""What a commit says of a shard."""


@dataclass
class Result:
    """The manifest to learn from, and what it was made from: output shards, their scores, and for each row why it is dropped, 0 if kept."""

    manifest: Manifest
    store: Store
    records: Sequence[Record]
    tables: list[pa.Table]
    reasons: list[NDArray[np.int8]]
    dead: Mapping[str, Record]
    """What is known of the shards that were set aside."""


def assemble(job: Job, store: Store, cfg: SelectionConfig) -> Result:
    """Selects among the texts of a finished job and writes the selection; reads scores and indexes, no image and no model.

    Raises ShardError where shards are not done or scores were altered.
    """
    done, dead = finished(store, job.shards, job.config.lost)
    records = list(done.values())
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda record: read_scores(store, record), records))
        selection = select(joined(tables), cfg, job.config.judged)
        reasons = np.split(selection.reasons, np.cumsum([len(table) for table in tables])[:-1])
        shards = list(pool.map(lambda *part: write_selection(store, *part), records, tables, reasons))
    rejected = sum((Counter(record["rejected"]) for record in records), Counter())
    manifest = Manifest(
        name=job.input.name,
        root=store.uri,
        shards=tuple(shard for shard in shards if shard.samples),
        parents=(job.input.digest,),
        revision=job.revision,
        counts={
            **selection.counts,
            **{f"rejected.{reason}": number for reason, number in sorted(rejected.items())},
            "shards": len(records),
            "shards.dead": len(dead),
        },
        meta={"job": job.identity, **job.models, "selection": cfg.model_dump(mode="json"), "dead": sorted(dead)},
    )
    return Result(manifest, store, records, tables, reasons, dead)


def sweep(result: Result) -> None:
    """Deletes what attempts left behind that others came before; no shard of the job is at work any more."""
    needed = {beside(record, ending) for record in result.records for ending in (".tar", *BESIDE)}
    for key in result.store.list("data/"):
        if key not in needed:
            result.store.delete(key)


def read_scores(store: Store, record: Record) -> pa.Table:
    key = beside(record, SCORES)
    data = store.get(key)
    if (found := hashlib.sha256(data).hexdigest()) != record["scores"]:
        raise ShardError(f"scores {store.uri}/{key} were altered: their sha256 is {found} where the commit says {record['scores']}")
    return from_parquet(data)


def read_index(store: Store, record: Record) -> Index:
    """The index beside an output shard. Raises ShardError where it is not what was committed."""
    key = beside(record, INDEX)
    index = Index(store.get(key))
    if index.digest != record["index"]:
        raise ShardError(f"index {store.uri}/{key} was altered: its sha256 is {index.digest} where the commit says {record['index']}")
    return index


def beside(record: Record, ending: str) -> str:
    """The key of what lies beside an output shard."""
    return record["name"].removesuffix(".tar") + ending


def write_selection(store: Store, record: Record, table: pa.Table, reasons: NDArray[np.int8]) -> Shard:
    """Writes another index for a shard, of the samples and texts that count; its name ends in its digest, so none is ever changed."""
    kept: dict[str, list[str]] = {}
    rows = table.filter(pa.array(reasons == 0))
    for key, text in zip(rows["key"].to_pylist(), rows["text"].to_pylist(), strict=True):
        kept.setdefault(key, []).append(text)
    index = Index.of(selected(read_index(store, record), kept))
    name = f"selection/{beside(record, '').removeprefix('data/')}-{index.digest[:16]}.idx.jsonl"
    store.put(name, index.lines)
    return Shard(
        name=record["name"], sha256=record["sha256"], bytes=record["bytes"], samples=len(index), index=name, index_sha256=index.digest
    )


def selected(index: Index, kept: Mapping[str, list[str]]) -> Iterator[tuple[str, Members, list[str]]]:
    """Entries of the samples that have texts to learn from; their web texts and scores are not read with them."""
    for row in range(len(index)):
        key, members, *_ = index[row]
        if key in kept:
            yield key, {name: place for name, place in members.items() if name not in ("txt", JSON)}, kept[key]
