"""The output of a finished CapFilt job: one table of scores per shard."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

import pyarrow as pa

from blip.capfilt.job import CapFiltJob
from blip.capfilt.pairs import map_ahead
from blip.capfilt.table import from_parquet, is_score
from blip.config import Config
from blip.digest import value_digest
from blip.shards.manifest import Shard
from blip.shards.verification import ShardError
from blip.storage import MissingKeyError, Store, open_store
from blip.workers.queue import ShardRecord, finished

READ_AHEAD = 4
"""Tables fetched in advance."""


class ScoresSource(Config):
    """A reference to a finished job, passed from step to step: the job's folder and the digest of its tables."""

    job: str
    """The URI of the job's folder."""
    digest: str
    """SHA-256 of the tables' names and digests."""


@dataclass(frozen=True)
class Scores:
    """The tables of a job's shards in input order, with the records of finished and dead shards."""

    job: CapFiltJob
    store: Store
    done: Mapping[str, ShardRecord]
    dead: Mapping[str, ShardRecord]

    @classmethod
    def of(cls, job: CapFiltJob, store: Store) -> Self:
        """Reads the commit records of a job. Raises ShardError if shards are unfinished or too many are dead."""
        return cls(job, store, *finished(store, job.shards, job.config.lost))

    @classmethod
    def load(cls, source: ScoresSource) -> Self:
        """Opens the scores of a reference. Raises ShardError if they are missing or were altered."""
        store = open_store(source.job)
        try:
            found = cls.of(CapFiltJob.load(source.job), store)
        except MissingKeyError:
            raise ShardError(f"the scores of {source.job} are not there: run capfilt again") from None
        if found.source.digest != source.digest:
            raise ShardError(
                f"the commits of {source.job} were altered: they name other tables than scores.json; run capfilt again"
            )
        return found

    @property
    def source(self) -> ScoresSource:
        """The reference to these scores."""
        tables = [[name, record["sha256"]] for name, record in self.done.items()]
        return ScoresSource(job=self.store.uri, digest=value_digest(tables))

    @property
    def shards(self) -> list[Shard]:
        """The shards with a table."""
        return [shard for shard in self.job.input.shards if shard.name in self.done]

    @property
    def rejected(self) -> Counter[str]:
        """Samples without scores, by reason."""
        return sum((Counter(record["rejected"]) for record in self.done.values()), Counter())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields each shard's table, or only `columns` of it. Raises ShardError if one is missing or altered."""
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            yield from map_ahead(pool, partial(self.read_table, columns=columns), self.done.values(), READ_AHEAD)

    def given(self) -> list[str]:
        """Returns the columns with scores of filters, by the first table that has any; empty if none has."""
        for record in self.done.values():
            table = self.read_table(record, None)
            names = [name for name in table.column_names if is_score(name)]
            if found := [name for name in names if table[name].null_count < len(table)]:
                return found
        return []

    def read_table(self, record: ShardRecord, columns: Sequence[str] | None) -> pa.Table:
        """Reads the table of one commit record. Raises ShardError if it is missing or altered."""
        uri = f"{self.store.uri}/{record['name']}"
        way_out = f"delete the commit of {record['shard']!r} there and run capfilt again"
        try:
            data = self.store.get(record["name"])
        except MissingKeyError:
            raise ShardError(f"scores {uri} are missing: {way_out}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != record["sha256"]:
            raise ShardError(
                f"scores {uri} were altered: their sha256 is {found}, the commit has {record['sha256']}; {way_out}"
            )
        return from_parquet(data, columns)

    def sweep(self) -> None:
        """Deletes tables that no commit names, left by losing attempts. Call it only when no worker is active."""
        needed = {record["name"] for record in self.done.values()}
        for key in self.store.list("data/"):
            if key not in needed:
                self.store.delete(key)
