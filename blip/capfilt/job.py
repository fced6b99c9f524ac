"""The job of CapFilt: which shards are captioned and scored, with which models and settings."""

from typing import ClassVar, Literal

from pydantic import Field

from blip.capfilt.shard import ShardConfig
from blip.workers.job import Job, WorkConfig


class CapFiltConfig(ShardConfig, WorkConfig):
    """CapFilt over a data set (BLIP, section 3.3)."""

    OPERATION: ClassVar[frozenset[str]] = WorkConfig.OPERATION | {"source", "threads", "lost", "unexpected"}

    source: str = "web"
    """The manifest to bootstrap, by its name in the data folder; or tars by brace pattern, folder or prefix, local or `s3://`."""
    threads: int = Field(default=2, ge=1)
    """Images that a worker decodes at a time."""
    lost: float = Field(default=0.1, ge=0, le=1)
    """The share of shards that may be set aside before the whole job counts as failed."""


class CapFiltJob(Job[CapFiltConfig]):
    """Captions and scores of one data set's texts; what is kept of them is no part of it."""

    FORMAT: ClassVar[int] = 2
    type: Literal["capfilt"] = "capfilt"  # pyright: ignore[reportIncompatibleVariableOverride] (it is frozen)
