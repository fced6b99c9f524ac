"""Shards: tars of samples, written once, named by digest and verified before they are read."""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from blip.shards.index import Index
from blip.shards.layout import read_texts, select_members, unpack, without_images
from blip.shards.manifest import Manifest, Shard
from blip.shards.names import Members
from blip.shards.sample import BadSample, Rejected, Sample, format_counts, one_sample, too_many_unexpected
from blip.shards.verification import ShardError, find_index, index_key, index_tar, missing_shard, verify_shard
from blip.storage import MissingKeyError, Store, scratch

log = logging.getLogger(__name__)


MAX_GAP = 64 * 1024
"""Bytes between a sample's members up to which they are read in one request."""


def samples(manifest: Manifest) -> Iterator[Sample]:
    """Yields all samples of a manifest, shard by shard. Raises ShardError."""
    for shard in manifest.shards:
        yield from read_shard(manifest.store, shard)


def read_shard(store: Store, shard: Shard, rejected: Counter[str] | None = None) -> Iterator[Sample]:
    """Yields a shard's samples in order, after its digest is verified.

    Bad samples are skipped, logged, and counted by reason in `rejected`. Raises ShardError.
    """
    reasons = Rejected()
    with open_shard(store, shard, reasons) as file:
        yield from good_samples(file, reasons)
    if reasons:
        log.warning("shard %s/%s: left out %s", store.uri, shard.name, format_counts(reasons))
    if rejected is not None:
        rejected.update(reasons)


class OpenShard(ABC):
    """A shard with random access to its samples."""

    uri: str
    shard: Shard
    index: Index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Sample:
        """Returns the sample of a row. Raises BadSample, also if it has texts of which none can be read."""
        sample = self.image_and_texts(row)
        if sample.text_fault:
            raise BadSample(sample.text_fault)
        return sample

    def image_and_texts(self, row: int) -> Sample:
        """Returns the sample of a row, without texts if none can be read. Raises BadSample if it has no image."""
        with one_sample(f"{row} of shard {self.uri}"):
            key, members, chosen = self.index[row]
            needed, too_large = select_members(members, self.shard.layout, chosen is not None)
            sample = unpack(key, self.contents(needed), self.shard.layout, chosen, too_large)
            sample.shard = self.shard.sha256
            return sample

    def texts(self, row: int) -> list[str]:
        """Returns the texts of a row without reading its images. Raises BadSample if there are some and none can be
        read."""
        with one_sample(f"{row} of shard {self.uri}"):
            _, members, chosen = self.index[row]
            needed, too_large = select_members(members, self.shard.layout, chosen is not None)
            if chosen is not None:
                return chosen
            texts, fault = read_texts(self.contents(without_images(needed)), self.shard.layout, too_large)
            if fault:
                raise BadSample(fault)
            return texts

    def contents(self, places: Members) -> dict[str, bytes]:
        """Reads members: in one request if they are adjacent, else one by one. Raises BadSample if one is cut short."""
        if not places:
            return {}
        start = min(offset for offset, _ in places.values())
        end = max(offset + size for offset, size in places.values())
        if end - start <= sum(size for _, size in places.values()) + MAX_GAP:
            data = self.read(start, end - start)
            found = {name: data[offset - start : offset - start + size] for name, (offset, size) in places.items()}
        else:
            found = {name: self.read(*place) for name, place in places.items()}
        if any(len(found[name]) < size for name, (_, size) in places.items()):
            raise BadSample("member is cut short")
        return found

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class ShardFile(OpenShard):
    """A shard in a local file. Raises ShardError if its size or digest is wrong; `verified` skips the digest.

    If there is no index beside it, the tar is scanned, and what is no sample is counted in `rejected`.
    """

    def __init__(
        self,
        store: Store,
        shard: Shard,
        path: Path,
        rejected: Counter[str] | None = None,
        verified: bool = False,
        index: Index | None = None,
    ):
        self.uri = f"{store.uri}/{shard.name}"
        self.shard = shard
        if not verified:
            verify_shard(path, shard, self.uri)
        self.index = (
            index
            or find_index(store, shard)
            or index_tar(path, shard, self.uri, Counter() if rejected is None else rejected)
        )
        try:
            self.file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise missing_shard(shard, self.uri) from None

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self.file.fileno(), size, offset)
        except OSError as e:
            raise ShardError(f"shard {self.uri} cannot be read: {e}") from e

    def close(self) -> None:
        self.file.close()


class RangedShard(OpenShard):
    """A shard in a store, of which single samples are requested. The index is required and verified; the shard's bytes
    are not."""

    def __init__(self, store: Store, shard: Shard, index: Index | None = None):
        self.uri = f"{store.uri}/{shard.name}"
        self.shard = shard
        index = index or find_index(store, shard)
        if index is None:
            raise ShardError(
                f"shard {self.uri} has no index beside it that is the manifest's ({index_key(shard)}, sha256 "
                f"{shard.index_sha256 or 'not known'}): it can only be read whole, so set loader.ranged=false"
            )
        self.store = store
        self.index = index

    def read(self, offset: int, size: int) -> bytes:
        return self.store.read(self.shard.name, offset, size)

    def close(self) -> None:
        """Does nothing: there is no open file."""


def good_samples(file: OpenShard, rejected: Rejected) -> Iterator[Sample]:
    """Yields the samples of an open shard in order; bad ones are counted by reason."""
    for row in range(len(file)):
        try:
            sample = file[row]
        except BadSample as e:
            rejected.add(e)
        else:
            yield sample


def check_unexpected(rejected: Rejected, file: OpenShard, share: float, setting: str) -> None:
    """Raises ShardError if unexpected errors affect more of a shard's samples than the setting allows."""
    if too_many_unexpected(rejected.unexpected, len(file), share):
        raise ShardError(
            f"shard {file.uri}: {rejected.unexpected} of {len(file)} samples failed unexpectedly, more than "
            f"{setting}={share:g} allows; the first: {rejected.details[0]}"
        )


@contextmanager
def open_shard(store: Store, shard: Shard, rejected: Rejected) -> Iterator[ShardFile]:
    """Opens a shard as a local file. Raises ShardError if it is missing."""
    try:
        with local_copy(store, shard.name) as path, ShardFile(store, shard, path, rejected) as file:
            yield file
    except MissingKeyError:
        raise missing_shard(shard, f"{store.uri}/{shard.name}") from None


@contextmanager
def browse_shard(store: Store, shard: Shard) -> Iterator[OpenShard]:
    """Opens a shard to look at a few of its samples, without its digest; raises ShardError if it is missing.

    One in a remote store is copied only if it has no index.
    """
    if store.path(shard.name) is None and (index := find_index(store, shard)):
        yield RangedShard(store, shard, index)
        return
    try:
        with local_copy(store, shard.name) as path, ShardFile(store, shard, path, verified=True) as file:
            yield file
    except MissingKeyError:
        raise missing_shard(shard, f"{store.uri}/{shard.name}") from None


@contextmanager
def local_copy(store: Store, key: str) -> Iterator[Path]:
    """Provides an object as a local file: the file itself in a local store, else a temporary copy. Raises
    MissingKeyError."""
    path = store.path(key)
    if path:
        if not path.is_file():
            raise MissingKeyError(f"{store.uri}/{key} does not exist")
        yield path
        return
    with scratch("copy") as folder:
        path = folder / "object"
        store.fetch(key, path)
        yield path
