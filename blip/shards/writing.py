"""Writes samples to shards: tars that are named by their digest, each with its index."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from blip.digest import file_digest
from blip.shards.index import Index
from blip.shards.layout import pack
from blip.shards.manifest import Layout, Manifest, Shard
from blip.shards.names import WRITABLE_KEY
from blip.shards.sample import Sample
from blip.shards.verification import index_key
from blip.storage import Store, open_store, scratch

WRITTEN_LAYOUT = Layout(keys="first")
"""Layout of the shards that this module writes: their keys have no dot."""

WriteShard = Callable[[Store, str, Iterable[Sample]], Shard]
"""Writes samples of a store's shard, given the beginning of its name."""


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
    write: WriteShard | None = None,
    done: Sequence[Shard] = (),
) -> Manifest:
    """Writes samples to tars `NAME-000000-DIGEST.tar` below `root` and returns their manifest, without saving it.

    Equal samples give equal bytes, names and manifests. `counts` is read after the last sample, so the iterable may
    update it. `write` writes one shard, as `write_shard` does. Shards that are `done` come first; their samples are not
    among the given ones.
    """
    store = open_store(root)
    write = write or write_shard
    rest = iter(samples)
    shards = [*done]
    while chunk := list(islice(rest, per_shard)):
        shards.append(write(store, f"{name}-{len(shards):06d}", chunk))
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
    """Writes one tar and its index. The name ends in the content's digest, so identical retries are idempotent.

    Raises ValueError if a key occurs twice or cannot be written.
    """
    with scratch("shard") as folder:
        path = folder / "shard.tar"
        seen = set()
        with path.open("wb") as f, TarWriter(f, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for sample in samples:
                if sample.key in seen or not WRITABLE_KEY.fullmatch(sample.key):
                    raise ValueError(
                        f"shard {store.uri}/{stem}: the key {sample.key!r} occurs twice or has a dot, "
                        "which ends a key in a tar"
                    )
                seen.add(sample.key)
                tar.write({"__key__": sample.key, **pack(sample)})
        rejected: Counter[str] = Counter()
        index = Index.scan(path, rejected, WRITTEN_LAYOUT.keys)
        if len(index) < len(seen):
            raise ValueError(
                f"shard {store.uri}/{stem}: {len(seen)} samples became {len(index)}; left out: {dict(rejected)}"
            )
        digest = file_digest(path)
        shard = Shard(
            name=f"{stem}-{digest[:8]}.tar",
            sha256=digest,
            bytes=path.stat().st_size,
            samples=len(index),
            index_sha256=index.digest,
            layout=WRITTEN_LAYOUT,
        )
        store.put_file(shard.name, path)
        store.put(index_key(shard), index.lines)
    return shard
