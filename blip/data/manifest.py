"""What a data set is: its shards by digest, where it came from, and what was left out."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from blip.config import Config, ConfigError, validate
from blip.digest import value_digest
from blip.storage import Store, locate, open_store


class Shard(Config):
    """One tar of a data set."""

    name: str
    """Its key, relative to the manifest's root."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    samples: int = Field(ge=0)
    index: str = ""
    """The key of an index of some of its samples and texts; empty for the one beside it, of all."""


class Manifest(Config):
    """A data set's shards and their history. This small file, not the bytes, is what passes between steps."""

    name: str
    root: str
    """The URI below which the shards lie."""
    shards: tuple[Shard, ...] = ()
    parents: tuple[str, ...] = ()
    """Digests of the manifests that this one was made from."""
    revision: str = ""
    """The code's revision that made it."""
    counts: dict[str, int] = Field(default_factory=dict)
    """How often what happened: samples left out by reason, and whatever else its maker counted."""
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def store(self) -> Store:
        return open_store(self.root)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but root and revision: a data set stays the same when it moves, and when its maker is mended."""
        return value_digest(self.model_dump(exclude={"root", "revision"}))

    def save(self, uri: str | Path) -> None:
        """Writes the manifest to a file or an object; the same manifest gives the same bytes."""
        store, key = locate(uri)
        store.put(key, json.dumps(self.model_dump(), indent=1, sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, uri: str | Path) -> Self:
        """Reads a manifest. Raises MissingKeyError where there is none, ConfigError where something else stands."""
        store, key = locate(uri)
        try:
            values = json.loads(store.get(key))
        except ValueError as e:
            raise ConfigError(f"manifest {uri} is not JSON: {e}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"manifest {uri} must be a mapping of keys to values, is a {type(values).__name__}")
        return validate(cls, values, f"manifest {uri}")
