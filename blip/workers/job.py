"""A job: shards, models and settings. Any worker that is given the URI of its folder can join."""

from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import Field

from blip.config import Config, validate
from blip.digest import canonical, value_digest
from blip.shards.manifest import Manifest
from blip.storage import Store, open_store
from blip.storage.records import parse_record
from blip.workers.model import ModelSource
from blip.workers.queue import LeaseConfig

JOB_FILE = "job.json"


class WorkConfig(Config):
    """Settings of how shards are processed that do not change the output."""

    OPERATION: ClassVar[frozenset[str]] = frozenset({"workers", "lease", "report", "max_gpu_hours"})
    """Settings that are not part of a job's identity; a subclass adds its own."""

    workers: int = Field(default=0, ge=0)
    """Worker processes on this machine; 0 for one per GPU."""
    lease: LeaseConfig = Field(default_factory=LeaseConfig)
    report: float = Field(default=2.0, gt=0)
    """Seconds between a worker's progress reports."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Bound on the GPU hours of all steps of a run together; beyond it no further shard is begun. None for no bound."""

    def output_settings(self) -> dict[str, Any]:
        """The settings that change the output, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.OPERATION))


WorkConfigT = TypeVar("WorkConfigT", bound=WorkConfig)


class Job(Config, Generic[WorkConfigT]):
    """Processing of the shards of one manifest with some models; subclasses set `type`."""

    FORMAT: ClassVar[int] = 1
    """Incremented when the same settings, data and models lead to another output."""

    type: str
    """The kind of job; it selects the code of the workers and the folder in the store."""
    config: WorkConfigT
    input: Manifest
    models: dict[str, ModelSource]
    """Models by role."""
    revision: str = ""
    """The revision of the code, for the record; not part of the identity, so that a job continues after a fix."""
    ledger: str = ""
    """The URI where workers record their GPU hours."""

    @property
    def shards(self) -> list[str]:
        """The names of the shards to process."""
        return [shard.name for shard in self.input.shards]

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the models by role."""
        return {role: source.digest for role, source in self.models.items()}

    @property
    def identity(self) -> str:
        """A digest that is equal for jobs with equal output."""
        values = {
            "type": self.type,
            "format": self.FORMAT,
            "config": self.config.output_settings(),
            "input": self.input.digest,
            "models": self.digests,
        }
        return value_digest(values)[:16]

    @property
    def account(self) -> str:
        """The name of the job in the ledger of GPU hours."""
        return f"{self.type}-{self.identity}"

    def home(self, root: Store) -> Store:
        """Returns the job's folder in a store."""
        return root.join(self.type, self.identity)

    def save(self, store: Store) -> None:
        store.put(JOB_FILE, canonical(self.model_dump(mode="json")))

    @classmethod
    def load(cls, uri: str) -> Self:
        """Returns the job of a folder.

        Raises MissingKeyError if there is none, and ConfigError if it is of another kind or version.
        """
        return validate(cls, read_job(uri), f"job {uri}")


def type_of(uri: str) -> str:
    """Returns the type of the job in a folder. Raises MissingKeyError if there is none."""
    found = read_job(uri).get("type")
    return found if isinstance(found, str) else ""


def read_job(uri: str) -> dict[str, Any]:
    return parse_record(open_store(uri).get(JOB_FILE), f"{uri}/{JOB_FILE}")
