"""A job: which shards, which models, which settings. Who knows its folder in the store can work on it."""

import json
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import Field

from blip.config import Config, validate
from blip.data.manifest import Manifest
from blip.digest import canonical, value_digest
from blip.storage import Store, open_store
from blip.workers.model import ModelSource
from blip.workers.queue import LeaseConfig

FILE = "job.json"


class WorkConfig(Config):
    """How the work on a job's shards is done, which changes nothing in what comes out."""

    OPERATION: ClassVar[frozenset[str]] = frozenset({"workers", "lease", "report", "max_gpu_hours"})
    """Settings that are no part of a job's identity; a subclass adds its own."""

    workers: int = Field(default=0, ge=0)
    """Processes on this machine that pull shards; 0 for one a GPU."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    report: float = Field(default=2.0, gt=0)
    """Seconds between a worker's progress reports."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; then no further shard is begun. None sets no bound."""


ConfigT = TypeVar("ConfigT", bound=WorkConfig)


class Job(Config, Generic[ConfigT]):
    """Work on the shards of one manifest with some models; a kind of work is a subclass that says its `type`."""

    FORMAT: ClassVar[int] = 1
    """Raised when the same settings, data and models lead to another output."""

    type: str
    """The kind of work, which its workers and its folder in the store are chosen by."""
    config: ConfigT
    input: Manifest
    models: dict[str, ModelSource]
    """By their role."""
    revision: str = ""
    """The code's, for the record: it is no part of the identity, so that a mended job goes on."""
    ledger: str = ""
    """The URI where workers keep account of their GPU hours."""

    @property
    def shards(self) -> list[str]:
        """The names of the shards to be done."""
        return [shard.name for shard in self.input.shards]

    @property
    def digests(self) -> dict[str, str]:
        """The models' digests by role."""
        return {role: source.digest for role, source in self.models.items()}

    @property
    def identity(self) -> str:
        """The same for jobs with the same output."""
        config = self.config.model_dump(mode="json", exclude=set(self.config.OPERATION))
        values = {"type": self.type, "format": self.FORMAT, "config": config, "input": self.input.digest, "models": self.digests}
        return value_digest(values)[:16]

    @property
    def account(self) -> str:
        """The job's name in the run's account of GPU hours."""
        return f"{self.type}-{self.identity}"

    def home(self, root: Store) -> Store:
        """The job's folder in a store."""
        return root.join(self.type, self.identity)

    def save(self, store: Store) -> None:
        store.put(FILE, canonical(self.model_dump(mode="json")))

    @classmethod
    def load(cls, uri: str) -> Self:
        """Returns the job of a folder. Raises MissingKeyError where there is none, and ConfigError for one of another kind or version."""
        return validate(cls, json.loads(open_store(uri).get(FILE)), f"job {uri}")


def type_of(uri: str) -> str:
    """Returns the kind of the job of a folder. Raises MissingKeyError where there is none."""
    return json.loads(open_store(uri).get(FILE))["type"]
