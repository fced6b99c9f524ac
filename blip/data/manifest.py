"""What a data set is: its shards by digest, where it came from, and what was left out."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from blip.config import Config, ConfigError, validate
from blip.data.names import KeyRule
from blip.digest import value_digest
from blip.storage import Store, StoreError, check_key, locate, open_store


class Layout(Config):
    """How the members of a tar become samples."""

    keys: KeyRule = "auto"
    """Where the key in a member's name ends: at its `first` dot (`000.seg.png` belongs to `000.jpg`), at its `last` one (`photo.v2.jpg` is
    `photo.v2`), or, `auto`, wherever images get a key of their own."""
    text_extension: str = ""
    """The extension of the members that hold the texts; empty for the first of txt, caption, cap and text that a sample has, and then
    for its json."""
    text_field: str = ""
    """The field of a sample's json that holds its text or texts; empty for the first of texts, captions, caption and text that it has.
    With one of these two settings, texts are read from nowhere else."""

    @field_validator("text_extension")
    @classmethod
    def extension_is_bare(cls, value: str) -> str:
        return value.removeprefix(".").lower()


class Shard(Config):
    """One tar of a data set."""

    name: str
    """Its key, relative to the manifest's root."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    samples: int = Field(ge=0)
    index: str = ""
    """The key of an index of some of its samples and texts; empty for the one beside it, of all."""
    index_root: str = ""
    """The URI below which that index lies; empty where it lies below the manifest's root, as the shard does."""
    index_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Digest of that index; empty where an earlier version wrote the manifest: then the index beside the shard is not believed."""
    layout: Layout = Layout()
    """How its members are read."""


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
    def store(self) -> Store:
        return open_store(self.root)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but where it lies and its revision: a data set stays the same when it moves, or its maker is mended."""
        return value_digest(self.model_dump(exclude={"root": True, "revision": True, "shards": {"__all__": {"index_root"}}}))

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
        except (ValueError, RecursionError) as e:
            raise ConfigError(f"manifest {uri} is not JSON: {e}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"manifest {uri} must be a mapping of keys to values, is a {type(values).__name__}")
        try:
            written = json.dumps(values, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as e:
            raise ConfigError(f"manifest {uri} holds what cannot be written again: {e}") from None
        if b"\\u0000" in written:
            raise ConfigError(f"manifest {uri} holds a NUL character, which no name has")
        manifest = validate(cls, values, f"manifest {uri}")
        try:
            open_store(manifest.root)
        except StoreError as e:
            raise ConfigError(f"manifest {uri}: root: {e}") from None
        manifest.check_shards(f"manifest {uri}")
        return manifest

    def check_shards(self, origin: str) -> None:
        """Raises ConfigError that names a shard that cannot be as the manifest says."""
        names: set[str] = set()
        for shard in self.shards:
            for key in (shard.name, shard.index) if shard.index else (shard.name,):
                try:
                    check_key(key)
                except StoreError as e:
                    raise ConfigError(f"{origin}: shards: {e}") from None
            if shard.name in names:
                raise ConfigError(f"{origin}: shards: {shard.name!r} stands there twice; leave one of them out")
            names.add(shard.name)

    def check_counts(self) -> None:
        """Raises ConfigError that names a shard that has not the bytes for its samples: no order of them should be drawn up."""
        for shard in self.shards:
            if shard.samples > shard.bytes // MIN_SAMPLE_BYTES:
                raise ConfigError(
                    f"manifest {self.name} of {self.root}: {shard.name!r} cannot hold {shard.samples:,} samples in {shard.bytes:,} bytes, "
                    f"since each takes {MIN_SAMPLE_BYTES} or more; ingest the tars again"
                )


MIN_SAMPLE_BYTES = 512
"""Bytes of a sample in a tar at least: a member's header."""
