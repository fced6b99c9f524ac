"""A job: which shards, which models, which settings. Who knows its folder in the store can work on it."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from pydantic import Field

from blip.capfilt.lease import LeaseConfig, committed, set_aside
from blip.capfilt.shard import ShardConfig
from blip.config import Config, validate
from blip.data.manifest import Manifest, canonical
from blip.data.shards import ShardError
from blip.storage import FolderStore, Store, open_store

READERS = 16
"""Small objects read from a store at a time."""


class CapFiltConfig(ShardConfig):
    """CapFilt over a data set (BLIP, section 3.3)."""

    source: str = "web"
    """The manifest to bootstrap, by its name in the data folder; or tars by brace pattern, folder or prefix, local or `s3://`."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    workers: int = Field(default=1, ge=1)
    """Processes on this machine."""
    threads: int = Field(default=2, ge=1)
    """Images that a worker decodes at a time."""
    report: float = Field(default=2.0, gt=0)
    """Seconds between two words of a worker about its progress."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; then no further shard is begun. None sets no bound."""
    lost: float = Field(default=0.1, ge=0, le=1)
    """The share of shards that may be set aside before the whole job counts as failed."""


OPERATION = ("source", "lease", "workers", "threads", "report", "max_gpu_hours", "lost")
"""Settings that change how the work is done but not what comes out."""


class ModelSource(Config):
    """A model folder, known by its digest, and where workers find it."""

    digest: str
    at: str
    """The URI of the folder."""

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The model as a local folder, for a while."""
        store = open_store(self.at)
        if isinstance(store, FolderStore):
            yield store.folder
            return
        with TemporaryDirectory(prefix="blip-") as folder:
            for key in store.list():
                path = Path(folder, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(key, path)
            yield Path(folder)


class Job(Config):
    config: CapFiltConfig
    input: Manifest
    captioner: ModelSource | None
    filter: ModelSource | None
    revision: str = ""
    """Of the code: another one may write other bytes."""
    ledger: str = ""
    """The URI where workers keep account of their GPU hours."""

    @property
    def sources(self) -> dict[str, ModelSource]:
        """The models by their role."""
        return {role: source for role, source in (("captioner", self.captioner), ("filter", self.filter)) if source}

    @property
    def models(self) -> dict[str, str]:
        """The digests that samples and manifests name."""
        return {role: source.digest for role, source in self.sources.items()}

    @property
    def identity(self) -> str:
        """The same for jobs with the same output."""
        config = self.config.model_dump(mode="json", exclude=set(OPERATION))
        values = {"config": config, "input": self.input.digest, "models": self.models, "revision": self.revision}
        return hashlib.sha256(canonical(values)).hexdigest()[:16]

    @property
    def account(self) -> str:
        """The job's name in the run's account of GPU hours."""
        return f"capfilt-{self.identity}"

    def save(self, store: Store) -> None:
        store.put("job.json", json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    @classmethod
    def load(cls, uri: str) -> Self:
        """The job of a folder. Raises MissingKeyError where there is none."""
        return validate(cls, json.loads(open_store(uri).get("job.json")), f"job {uri}")

    def records(self, store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """The commit records of all shards that are done and what is known of those set aside, by shard, in the input's order."""
        names = [shard.name for shard in self.input.shards]
        with ThreadPoolExecutor(READERS) as pool:
            done = {name: record for name, record in zip(names, pool.map(lambda n: committed(store, n), names), strict=True) if record}
            rest = [name for name in names if name not in done]
            dead = {name: record for name, record in zip(rest, pool.map(lambda n: set_aside(store, n), rest), strict=True) if record}
        return done, dead

    def finished(self, store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """As `records`, of a job whose shards are all settled. Raises ShardError where they are not, or where too many were set aside."""
        done, dead = self.records(store)
        missing = [shard.name for shard in self.input.shards if shard.name not in done and shard.name not in dead]
        if missing:
            raise ShardError(f"job {store.uri}: {len(missing)} shards are not done, {missing[0]} among them; start workers again")
        if len(dead) > self.config.lost * len(self.input.shards):
            name, record = next(iter(dead.items()))
            raise ShardError(
                f"job {store.uri}: {len(dead)} of {len(self.input.shards)} shards were set aside where lost={self.config.lost} is allowed; "
                f"{name} after {record['attempts']} attempts: {record['errors'][-1]}. Delete dead/ and lease/ there to try again"
            )
        return done, dead
