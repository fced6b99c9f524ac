"""The CapFilt job: its shards, models and settings."""

from typing import ClassVar, Literal

from pydantic import Field

from blip.capfilt.shard import ShardConfig
from blip.workers.job import Job, WorkConfig


class CapFiltConfig(ShardConfig, WorkConfig):
    """CapFilt over a data set (BLIP, section 3.3)."""

    OPERATION: ClassVar[frozenset[str]] = WorkConfig.OPERATION | {"source", "threads", "lost", "unexpected"}

    source: str = "web"
    """The name of a manifest in the data folder, or tars: a brace pattern, folder or prefix, local or `s3://`."""
    threads: int = Field(default=2, ge=1)
    """Decoding threads per worker."""
    lost: float = Field(default=0.1, ge=0, le=1)
    """The job fails if more than this share of its shards is set aside, 0 to 1."""


class CapFiltJob(Job[CapFiltConfig]):
    """Captions and scores the pairs of one data set. The selection is a separate step."""

    FORMAT: ClassVar[int] = 2
    type: Literal["capfilt"] = "capfilt"  # pyright: ignore[reportIncompatibleVariableOverride] (it is frozen)
