"""Manifests: a data set's shards by digest, its origin, and counts of what was left out."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from blip.config import Config, ConfigError, validate
from blip.digest import value_digest
from blip.shards.names import KeyRule
from blip.storage import Store, StoreError, check_key, locate, open_store


class Layout(Config):
    """How the members of a tar are grouped into samples."""

    keys: KeyRule = "auto"
    """Where the key in a member's name ends: at its `first` dot (`000.seg.png` belongs to `000.jpg`), at its `last` one
    (`photo.v2.jpg` is `photo.v2`), or, with `auto`, at the dot for which images get distinct keys."""
    text_extension: str = ""
    """The extension of the members that contain the texts. If empty, the first of txt, caption, cap and text that a
    sample has, then its json."""
    text_field: str = ""
    """The field of a sample's json that contains its text or texts. If empty, the first of texts, captions, caption and
    text that the json has. If this or `text_extension` is set, texts are read from nowhere else."""

    @field_validator("text_extension")
    @classmethod
    def extension_is_bare(cls, value: str) -> str:
        return value.removeprefix(".").lower()


ANONYMOUS = "anonymous"
"""The field of a manifest's `meta` that says that its shards lie in a public bucket, which is read without keys."""


class Shard(Config):
    """One tar of a data set."""

    name: str
    """The tar's key, relative to the manifest's root."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    samples: int = Field(ge=0)
    index: str = ""
    """The key of an index that selects samples and texts; empty for the index beside the shard, which lists all."""
    index_root: str = ""
    """The URI below which that index is stored; empty if it is below the manifest's root."""
    index_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Digest of that index; empty in manifests of earlier versions, for which the index beside the shard is not used.
    """
    layout: Layout = Layout()
    """How the members are grouped into samples."""


class Manifest(Config):
    """A data set's shards and provenance. Pipeline steps pass this small file, not the shards."""

    name: str
    root: str
    """The URI below which the shards are stored."""
    shards: tuple[Shard, ...] = ()
    parents: tuple[str, ...] = ()
    """Digests of the manifests from which this one was made."""
    revision: str = ""
    """Revision of the code that made it."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Samples left out by reason, and other counts of the step that wrote the manifest."""
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def chosen_from(self) -> int:
        """The number of samples that a selection was made from; of data that is no selection, its own."""
        return self.counts["images"] if "selection" in self.meta else self.samples

    @property
    def store(self) -> Store:
        return open_store(self.root, anonymous=self.meta.get(ANONYMOUS, False) is True)

    @property
    def digest(self) -> str:
        """SHA-256 of all fields but the root and the revision: moving a data set, or changing the code, does not change
        it."""
        return value_digest(
            self.model_dump(exclude={"root": True, "revision": True, "shards": {"__all__": {"index_root"}}})
        )

    def save(self, uri: str | Path) -> None:
        """Writes the manifest to a file or an object; equal manifests are written as equal bytes."""
        store, key = locate(uri)
        store.put(key, json.dumps(self.model_dump(), indent=1, sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, uri: str | Path) -> Self:
        """Reads a manifest. Raises MissingKeyError if it does not exist, ConfigError if it is not valid."""
        store, key = locate(uri)
        try:
            values = json.loads(store.get(key))
        except (ValueError, RecursionError) as e:
            raise ConfigError(f"manifest {uri} is not JSON: {e}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"manifest {uri} must be a mapping of keys to values, but is a {type(values).__name__}")
        try:
            written = json.dumps(values, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as e:
            raise ConfigError(f"manifest {uri} has values that cannot be written again: {e}") from None
        if b"\\u0000" in written:
            raise ConfigError(f"manifest {uri} has a NUL character, which no name may have")
        manifest = validate(cls, values, f"manifest {uri}")
        try:
            open_store(manifest.root)
        except StoreError as e:
            raise ConfigError(f"manifest {uri}: root: {e}") from None
        manifest.check_shards(f"manifest {uri}")
        return manifest

    def check_shards(self, origin: str) -> None:
        """Raises ConfigError if a shard's key is invalid or occurs twice."""
        names: set[str] = set()
        for shard in self.shards:
            for key in (shard.name, shard.index) if shard.index else (shard.name,):
                try:
                    check_key(key)
                except StoreError as e:
                    raise ConfigError(f"{origin}: shards: {e}") from None
            if shard.name in names:
                raise ConfigError(f"{origin}: shards: {shard.name!r} occurs twice; remove one")
            names.add(shard.name)

    def check_not_empty(self, place: str) -> None:
        """Raises ConfigError if there is no sample; `place` is where the manifest is."""
        if not self.samples:
            counts = ", ".join(f"{name} {number}" for name, number in sorted(self.counts.items()))
            raise ConfigError(
                f"{place}: there is no sample in it{f' ({counts})' if counts else ''}; name data that have some"
            )

    def check_counts(self) -> None:
        """Raises ConfigError if a shard is too small for its number of samples, before memory is allocated for their
        order."""
        for shard in self.shards:
            if shard.samples > shard.bytes // MIN_SAMPLE_BYTES:
                raise ConfigError(
                    f"manifest {self.name} of {self.root}: {shard.name!r} cannot hold {shard.samples:,} samples in "
                    f"{shard.bytes:,} bytes, since each takes {MIN_SAMPLE_BYTES} or more; ingest the tars again"
                )


MIN_SAMPLE_BYTES = 512
"""Smallest size of a sample in a tar: one member's header."""
