"""Shards: tars of samples, written once, named by their content and verified before they are read."""

import logging
import os
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from webdataset.writer import TarWriter

from blip.data.index import KEY, Index
from blip.data.layout import pack, unpack
from blip.data.manifest import Manifest, Shard
from blip.data.sample import BadSample, Sample
from blip.digest import file_digest
from blip.storage import MissingKeyError, Store, StoreError, open_store

log = logging.getLogger(__name__)


class ShardError(StoreError):
    """A shard that is missing, cut short or altered; the message names it and its digest."""


def write_shards(
    samples: Iterable[Sample],
    root: str | Path,
    name: str,
    per_shard: int = 1000,
    *,
    parents: Iterable[str] = (),
    revision: str = "",
    counts: Mapping[str, int] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes samples to tars `NAME-000000-DIGEST.tar` below `root` and returns their manifest, unsaved.

    The same samples give the same bytes, names and manifest. `counts` is read at the end: whoever yields the samples may go on counting.
    """
    store, rest, shards = open_store(root), iter(samples), []
    while chunk := list(islice(rest, per_shard)):
        shards.append(write_shard(store, f"{name}-{len(shards):06d}", chunk))
    return Manifest(
        name=name,
        root=store.uri,
        shards=tuple(shards),
        parents=tuple(parents),
        revision=revision,
        counts=dict(counts or {}),
        meta=dict(meta or {}),
    )


def write_shard(store: Store, stem: str, samples: Iterable[Sample]) -> Shard:
    """Writes one tar and its index. Its name ends in its digest: two attempts at the same work write the same object, others another."""
    with tempfile.TemporaryDirectory(prefix="blip-") as folder:
        path = Path(folder) / "shard.tar"
        seen = set()
        with path.open("wb") as f, TarWriter(f, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for sample in samples:
                if sample.key in seen or not KEY.fullmatch(sample.key):
                    raise ValueError(
                        f"shard {store.uri}/{stem}: the key {sample.key!r} comes twice or has a dot, which ends a key in a tar"
                    )
                seen.add(sample.key)
                tar.write({"__key__": sample.key, **pack(sample)})
        index = Index.scan(path, Counter())
        digest = file_digest(path)
        shard = Shard(name=f"{stem}-{digest[:8]}.tar", sha256=digest, bytes=path.stat().st_size, samples=len(index))
        store.put_file(shard.name, path)
        store.put(index_key(shard), index.lines)
    return shard


def samples(manifest: Manifest) -> Iterator[Sample]:
    """Every sample of a manifest, shard by shard. Raises ShardError."""
    for shard in manifest.shards:
        yield from read_shard(manifest.store, shard)


def read_shard(store: Store, shard: Shard, rejected: Counter[str] | None = None) -> Iterator[Sample]:
    """The samples of a shard in their order, after its digest was found right.

    Bad samples are skipped, counted by reason in `rejected` and told to the log. Raises ShardError.
    """
    reasons: Counter[str] = Counter()
    with opened(store, shard, reasons) as file:
        yield from good_samples(file, reasons)
    if reasons:
        log.warning("shard %s/%s: left out %s", store.uri, shard.name, ", ".join(f"{n} ({r})" for r, n in sorted(reasons.items())))
    if rejected is not None:
        rejected.update(reasons)


class OpenShard(ABC):
    """A shard whose samples are read in any order."""

    index: Index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Sample:
        """The sample of a row, its members read at once. Raises BadSample."""
        key, members, texts = self.index[row]
        start = min(offset for offset, _ in members.values())
        end = max(offset + size for offset, size in members.values())
        data = self.read(start, end - start)
        sample = unpack(key, {name: data[offset - start : offset - start + size] for name, (offset, size) in members.items()})
        return sample if texts is None else replace(sample, texts=texts)

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class ShardFile(OpenShard):
    """A shard in a local file, verified when it is opened unless it was before. Raises ShardError."""

    def __init__(self, store: Store, shard: Shard, path: Path, rejected: Counter[str] | None = None, verified: bool = False):
        uri = f"{store.uri}/{shard.name}"
        if not verified:
            verify(path, shard, uri)
        self.index = find_index(store, shard) or scan(path, shard, uri, Counter() if rejected is None else rejected)
        self.file = path.open("rb", buffering=0)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)

    def close(self) -> None:
        self.file.close()


class RangedShard(OpenShard):
    """A shard read where it lies, sample by sample, which needs its index and verifies nothing but sizes."""

    def __init__(self, store: Store, shard: Shard):
        index = find_index(store, shard)
        if index is None:
            raise ShardError(f"shard {store.uri}/{shard.name} has no index beside it ({index_key(shard)}): it can only be read whole")
        self.store, self.name, self.index = store, shard.name, index

    def read(self, offset: int, size: int) -> bytes:
        return self.store.read(self.name, offset, size)

    def close(self) -> None:
        """Nothing is held open."""


def good_samples(file: OpenShard, rejected: Counter[str]) -> Iterator[Sample]:
    """The samples of an open shard in their order; bad ones are counted by reason."""
    for row in range(len(file)):
        try:
            sample = file[row]
        except BadSample as e:
            rejected[str(e)] += 1
        else:
            yield sample


@contextmanager
def opened(store: Store, shard: Shard, rejected: Counter[str]) -> Iterator[ShardFile]:
    """The shard's file, for a while."""
    try:
        with local_copy(store, shard.name) as path, ShardFile(store, shard, path, rejected) as file:
            yield file
    except MissingKeyError:
        raise missing(shard, f"{store.uri}/{shard.name}") from None


@contextmanager
def local_copy(store: Store, key: str) -> Iterator[Path]:
    """An object as a local file: in place where it is one, else a copy for as long as it is needed. Raises MissingKeyError."""
    if path := store.path(key):
        if not path.is_file():
            raise MissingKeyError(f"{store.uri}/{key} does not exist")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="blip-") as folder:
        path = Path(folder) / "object"
        store.fetch(key, path)
        yield path


def verify(path: Path, shard: Shard, uri: str) -> None:
    """Compares a local file with what the manifest says of the shard. Raises ShardError."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise missing(shard, uri) from None
    if size != shard.bytes:
        what = "is cut short" if size < shard.bytes else "is too long"
        raise ShardError(f"shard {uri} {what}: {size} bytes where the manifest says {shard.bytes} with sha256 {shard.sha256}")
    if (found := file_digest(path)) != shard.sha256:
        raise ShardError(f"shard {uri} was altered: its sha256 is {found} where the manifest says {shard.sha256}")


def missing(shard: Shard, uri: str) -> ShardError:
    return ShardError(f"shard {uri} is missing; the manifest says {shard.bytes} bytes with sha256 {shard.sha256}")


def index_key(shard: Shard) -> str:
    return shard.index or f"{shard.name.removesuffix('.tar')}.idx.jsonl"


def find_index(store: Store, shard: Shard) -> Index | None:
    """The shard's index, if it was stored and speaks of as many samples. Raises ShardError where a selection's index is missing."""
    try:
        index = Index(store.get(index_key(shard)))
    except MissingKeyError:
        if shard.index:
            raise ShardError(f"shard {store.uri}/{shard.name}: the index of its selection, {shard.index}, is missing") from None
        return None
    return index if len(index) == shard.samples else None


def scan(path: Path, shard: Shard, uri: str, rejected: Counter[str]) -> Index:
    try:
        index = Index.scan(path, rejected)
    except tarfile.TarError as e:
        raise ShardError(f"shard {uri} with sha256 {shard.sha256} cannot be read as a tar: {e}") from e
    if len(index) != shard.samples:
        raise ShardError(f"shard {uri} with sha256 {shard.sha256} has {len(index)} samples where the manifest says {shard.samples}")
    return index
