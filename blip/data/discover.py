"""Data sets that somebody else wrote: any tars of samples become a manifest."""

import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from webdataset.shardlists import expand_urls

from blip.config import ConfigError
from blip.data.index import Index
from blip.data.manifest import Manifest, Shard
from blip.data.shards import ShardError, local_copy, sha256
from blip.storage import MissingKeyError, Store, locate, open_store


def discover(source: str | Path, name: str = "", threads: int = 8, advance: Callable[[Shard], None] = lambda _: None) -> Manifest:
    """The manifest that `source` names: a manifest's file, a tar, tars by brace pattern (`web/{00000..00041}.tar`), folder or prefix.

    Tars are read once, whole, for their digests and samples; `advance` hears of each. Save the manifest to do so only once.
    Raises ConfigError where no tar is found and ShardError where one is missing or broken.
    """
    if str(source).endswith(".json"):
        return Manifest.load(source)
    store, keys = find(str(source))
    counts: Counter[str] = Counter()
    shards = []
    with ThreadPoolExecutor(threads) as pool:
        for shard, rejected in pool.map(lambda key: describe(store, key), keys):
            shards.append(shard)
            counts += rejected
            advance(shard)
    return Manifest(name=name or store.uri.rpartition("/")[2], root=store.uri, shards=tuple(shards), counts=dict(counts))


def find(source: str) -> tuple[Store, list[str]]:
    """The store of a source and the keys of its tars."""
    fixed, brace, varied = source.partition("{")
    if brace:
        store, start = locate(f"{fixed}*")
        return store, expand(source, f"{start[:-1]}{{{varied}")
    if source.endswith(".tar"):
        store, key = locate(source)
        return store, [key]
    store = open_store(source)
    keys = [key for key in store.list() if key.endswith(".tar")]
    if not keys and not source.endswith("/"):
        store, prefix = locate(source)
        keys = [key for key in store.list(prefix) if key.endswith(".tar")]
    if not keys:
        raise ConfigError(f"no .tar below {source!r}; name a manifest (.json), a tar, a brace pattern, a folder or a prefix of tars")
    return store, keys


def expand(source: str, pattern: str) -> list[str]:
    try:
        return expand_urls(pattern)
    except ValueError as e:
        raise ConfigError(f"{source!r} is no brace pattern such as web/{{00000..00041}}.tar: {e}") from None


def describe(store: Store, key: str) -> tuple[Shard, Counter[str]]:
    """What a manifest says of a tar, and what was left out of it by reason."""
    rejected: Counter[str] = Counter()
    try:
        with local_copy(store, key) as path:
            index = Index.scan(path, rejected)
            return Shard(name=key, sha256=sha256(path), bytes=path.stat().st_size, samples=len(index)), rejected
    except MissingKeyError:
        raise ShardError(f"shard {store.uri}/{key} is missing") from None
    except tarfile.TarError as e:
        raise ShardError(f"shard {store.uri}/{key} cannot be read as a tar: {e}") from e
