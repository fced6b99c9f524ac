"""Shards whose samples share images: questions about one image, or statements about one pair, store it once."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from blip.digest import file_digest
from blip.shards.index import Index, IndexEntry
from blip.shards.layout import pack
from blip.shards.manifest import Manifest, Shard
from blip.shards.names import WRITABLE_KEY, image_extensions
from blip.shards.sample import Sample
from blip.shards.tar import read_members
from blip.shards.writing import WRITTEN_LAYOUT, write_shards
from blip.storage import Store, scratch


def write_sharing_shards(
    samples: Iterable[Sample],
    root: str | Path,
    name: str,
    per_shard: int = 1000,
    *,
    revision: str = "",
    counts: Mapping[str, int] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Manifest:
    """As `write_shards`, but images that several samples of a shard have lie in its tar once.

    A tar alone does not say which samples share images: the index beside it does, as that of a selection.
    """
    return write_shards(
        samples, root, name, per_shard, revision=revision, counts=counts, meta=meta, write=write_sharing_shard
    )


def write_sharing_shard(store: Store, stem: str, samples: Iterable[Sample]) -> Shard:
    """Writes one tar and its index. Raises ValueError if a key occurs twice or cannot be written."""
    with scratch("shard") as folder:
        path = folder / "shard.tar"
        owners: dict[bytes, str] = {}  # digest of images to the key of the sample that they are stored with
        extensions: dict[str, tuple[str, list[str], list[str]]] = {}  # key to owner, images and other members
        with path.open("wb") as f, TarWriter(f, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for sample in samples:
                if sample.key in extensions or not WRITABLE_KEY.fullmatch(sample.key):
                    raise ValueError(
                        f"shard {store.uri}/{stem}: the key {sample.key!r} occurs twice or has a dot, "
                        "which ends a key in a tar"
                    )
                members = pack(sample)
                images = image_extensions(members)
                owner = owners.setdefault(digest_of(sample.images), sample.key)
                others = [extension for extension in members if extension not in images]
                extensions[sample.key] = owner, images, others
                kept = members if owner == sample.key else {extension: members[extension] for extension in others}
                if kept:
                    tar.write({"__key__": sample.key, **kept})
        places = {member.name: (member.offset, member.size) for member in read_members(path, Counter())}
        index = Index.of(entry(key, *parts, places) for key, parts in extensions.items())
        digest = file_digest(path)
        name = f"{stem}-{digest[:8]}"
        shard = Shard(
            name=f"{name}.tar",
            sha256=digest,
            bytes=path.stat().st_size,
            samples=len(index),
            index=f"{name}.sharing.jsonl",
            index_sha256=index.digest,
            layout=WRITTEN_LAYOUT,
        )
        store.put_file(shard.name, path)
        store.put(shard.index, index.lines)
    return shard


def digest_of(images: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in images)).digest()


def entry(
    key: str, owner: str, images: list[str], others: list[str], places: Mapping[str, tuple[int, int]]
) -> IndexEntry:
    """Returns a sample's line of the index: its own members, and its owner's images."""
    found = {extension: places[f"{owner}.{extension}"] for extension in images}
    return key, found | {extension: places[f"{key}.{extension}"] for extension in others}
