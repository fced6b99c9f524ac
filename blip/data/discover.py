"""Data sets that somebody else wrote: any tars of samples become a manifest."""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field
from webdataset.shardlists import expand_urls

from blip.config import Config, ConfigError, validate
from blip.data.index import Index
from blip.data.manifest import Manifest, Shard
from blip.data.shards import ShardError, local_copy
from blip.digest import file_digest
from blip.storage import MissingKeyError, Store, locate, open_store


class Reading(Config):
    """What was learnt of a tar by reading it whole."""

    stamp: str
    """What the store's listing said of the tar before it was read: while it says the same, reading it again would tell nothing new."""
    shard: Shard
    rejected: dict[str, int] = Field(default_factory=dict)
    """What was left out, by reason."""


def discover(
    source: str | Path,
    name: str = "",
    threads: int = 8,
    advance: Callable[[Shard], None] = lambda _: None,
    *,
    memory: Store | None = None,
    known: Collection[str] = (),
) -> Manifest:
    """The manifest that `source` names: a manifest's file, a tar, tars by brace pattern (`web/{00000..00041}.tar`), folder or prefix.

    Tars are read once, whole, for their digests and samples; `advance` hears of each. Save the manifest to do so only once, or give a
    store as `memory`, and only tars that are new or were replaced will be read. Shards whose digests are `known` are left out.
    Raises ConfigError where no tar is found and ShardError where one is missing or broken.
    """
    if str(source).endswith(".json"):
        whole = Manifest.load(source)
        return whole.model_copy(update={"shards": tuple(shard for shard in whole.shards if shard.sha256 not in known)})
    store, stamps = find(str(source))
    read = recall(memory, store.uri) if memory else {}
    counts: Counter[str] = Counter()
    shards = []

    before = dict(read)

    def reading(key: str) -> Reading:
        former = before.get(key)
        return former if former and former.stamp == stamps[key] != "" else describe(store, key, stamps[key])

    try:
        with ThreadPoolExecutor(threads) as pool:
            for key, found in zip(stamps, pool.map(reading, stamps), strict=True):
                read[key] = found
                if found.shard.sha256 not in known:
                    shards.append(found.shard)
                    counts.update(found.rejected)
                    advance(found.shard)
    finally:
        if memory and read != before:
            memory.put(page(store.uri), json.dumps([reading.model_dump() for reading in read.values()]).encode())
    return Manifest(name=name or store.uri.rpartition("/")[2], root=store.uri, shards=tuple(shards), counts=dict(counts))


def recall(memory: Store, root: str) -> dict[str, Reading]:
    """What is remembered of the tars below a URI, by key. Of two who write at once one is forgotten, which costs reading again."""
    try:
        found = json.loads(memory.get(page(root)))
    except MissingKeyError:
        return {}
    return {reading.shard.name: reading for reading in (validate(Reading, values, f"{memory.uri}/{page(root)}") for values in found)}


def page(root: str) -> str:
    """The key under which what was read below a URI is remembered."""
    return f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"


def find(source: str) -> tuple[Store, dict[str, str]]:
    """The store of a source, and the stamps of its tars by key: empty for one that a pattern names and that is not there."""
    fixed, brace, varied = source.partition("{")
    if brace or source.endswith(".tar"):
        store, start = locate(f"{fixed}*" if brace else source)
        keys = expand(source, f"{start[:-1]}{{{varied}") if brace else [start]
        there = store.stamps(start[:-1] if brace else start)
        return store, {key: there.get(key, "") for key in keys}
    store = open_store(source)
    stamps = tars(store)
    if not stamps and not source.endswith("/"):
        store, prefix = locate(source)
        stamps = tars(store, prefix)
    if not stamps:
        raise ConfigError(f"no .tar below {source!r}; name a manifest (.json), a tar, a brace pattern, a folder or a prefix of tars")
    return store, stamps


def tars(store: Store, prefix: str = "") -> dict[str, str]:
    """The keys of a store's tars with their stamps."""
    return {key: stamp for key, stamp in store.stamps(prefix).items() if key.endswith(".tar")}


def expand(source: str, pattern: str) -> list[str]:
    try:
        return expand_urls(pattern)
    except ValueError as e:
        raise ConfigError(f"{source!r} is no brace pattern such as web/{{00000..00041}}.tar: {e}") from None


def describe(store: Store, key: str, stamp: str) -> Reading:
    """Reads a tar for what a manifest says of it, and for what was left out of it."""
    rejected: Counter[str] = Counter()
    try:
        with local_copy(store, key) as path:
            index = Index.scan(path, rejected)
            shard = Shard(name=key, sha256=file_digest(path), bytes=path.stat().st_size, samples=len(index), index_sha256=index.digest)
            return Reading(stamp=stamp, shard=shard, rejected=dict(rejected))
    except MissingKeyError:
        raise ShardError(f"shard {store.uri}/{key} is missing") from None
    except tarfile.TarError as e:
        raise ShardError(f"shard {store.uri}/{key} cannot be read as a tar: {e}") from e
