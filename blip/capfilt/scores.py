"""What a finished job has left in the store: a table of scores for each shard, which any selection reads."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pyarrow as pa

from blip.capfilt.job import CapFiltJob
from blip.capfilt.pairs import ahead
from blip.capfilt.table import from_parquet
from blip.config import Config
from blip.data.manifest import Shard
from blip.data.verification import ShardError
from blip.digest import value_digest
from blip.storage import MissingKeyError, Store, open_store
from blip.workers.queue import finished

Record = Mapping[str, Any]
"""What a commit says of a shard."""
READ_AHEAD = 4
"""Tables that are fetched while one is looked at."""


class ScoresSource(Config):
    """A finished job, known by the digest of its tables, and where it lies; what passes between the steps."""

    job: str
    """The URI of the job's folder."""
    digest: str
    """Of the tables' names and digests."""


@dataclass(frozen=True)
class Scores:
    """The tables of a job's shards, in the order of its input; and what is known of shards that were set aside."""

    job: CapFiltJob
    store: Store
    done: Mapping[str, Record]
    dead: Mapping[str, Record]

    @classmethod
    def of(cls, job: CapFiltJob, store: Store) -> Self:
        """Reads the commit records of a job. Raises ShardError where shards are not done, or too many were set aside."""
        return cls(job, store, *finished(store, job.shards, job.config.lost))

    @classmethod
    def load(cls, source: ScoresSource) -> Self:
        """The scores that a file names. Raises ShardError where they are not there, or no longer the same."""
        store = open_store(source.job)
        try:
            found = cls.of(CapFiltJob.load(source.job), store)
        except MissingKeyError:
            raise ShardError(f"the scores of {source.job} are not there: run capfilt again") from None
        if found.source.digest != source.digest:
            raise ShardError(f"the commits of {source.job} were altered: they name other tables than scores.json; run capfilt again")
        return found

    @property
    def source(self) -> ScoresSource:
        """What names these scores."""
        return ScoresSource(job=self.store.uri, digest=value_digest([[name, record["sha256"]] for name, record in self.done.items()]))

    @property
    def shards(self) -> list[Shard]:
        """The shards that have a table."""
        return [shard for shard in self.job.input.shards if shard.name in self.done]

    @property
    def rejected(self) -> Counter[str]:
        """Samples without a row, by reason."""
        return sum((Counter(record["rejected"]) for record in self.done.values()), Counter())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The table of each shard, or some of its columns, one after the other. Raises ShardError where one was altered."""
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            yield from ahead(pool, partial(self.read, columns=columns), self.done.values(), READ_AHEAD)

    def read(self, record: Record, columns: Sequence[str] | None) -> pa.Table:
        uri = f"{self.store.uri}/{record['name']}"
        try:
            data = self.store.get(record["name"])
        except MissingKeyError:
            raise ShardError(f"scores {uri} are missing: delete the commit of {record['shard']!r} there and run capfilt again") from None
        if (found := hashlib.sha256(data).hexdigest()) != record["sha256"]:
            raise ShardError(
                f"scores {uri} were altered: their sha256 is {found} where the commit says {record['sha256']}; "
                f"delete the commit of {record['shard']!r} there and run capfilt again"
            )
        return from_parquet(data, columns)

    def sweep(self) -> None:
        """Deletes what attempts left behind that others came before; no shard of the job is at work any more."""
        needed = {record["name"] for record in self.done.values()}
        for key in self.store.list("data/"):
            if key not in needed:
                self.store.delete(key)
