"""A job: which shards, which models, which settings. Who knows its folder in the store can work on it."""

import json
from typing import Literal, Self

from pydantic import Field

from blip.capfilt.shard import ShardConfig
from blip.config import Config, validate
from blip.data.manifest import Manifest
from blip.digest import value_digest
from blip.storage import Store, open_store
from blip.workers.model import ModelSource
from blip.workers.queue import LeaseConfig


class CapFiltConfig(ShardConfig):
    """CapFilt over a data set (BLIP, section 3.3)."""

    source: str = "web"
    """The manifest to bootstrap, by its name in the data folder; or tars by brace pattern, folder or prefix, local or `s3://`."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    workers: int = Field(default=0, ge=0)
    """Processes on this machine; 0 for one a GPU."""
    threads: int = Field(default=2, ge=1)
    """Images that a worker decodes at a time."""
    report: float = Field(default=2.0, gt=0)
    """Seconds between two words of a worker about its progress."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; then no further shard is begun. None sets no bound."""
    lost: float = Field(default=0.1, ge=0, le=1)
    """The share of shards that may be set aside before the whole job counts as failed."""


OPERATION = ("source", "lease", "workers", "threads", "report", "max_gpu_hours", "lost", "unexpected")
"""Settings that change how the work is done but not what comes out."""


class Job(Config):
    type: Literal["capfilt"] = "capfilt"
    config: CapFiltConfig
    input: Manifest
    captioner: ModelSource | None
    filter: ModelSource | None
    revision: str = ""
    """Of the code: another one may write other bytes."""
    ledger: str = ""
    """The URI where workers keep account of their GPU hours."""

    @property
    def shards(self) -> list[str]:
        """The names of the shards to be done."""
        return [shard.name for shard in self.input.shards]

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
        return value_digest(values)[:16]

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
