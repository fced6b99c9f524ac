"""Comparison of shards and their indexes with the manifest."""

import logging
import tarfile
from collections import Counter
from pathlib import Path

from blip.digest import file_digest
from blip.shards.index import Index
from blip.shards.manifest import Shard
from blip.storage import MissingKeyError, Store, StoreError, open_store

log = logging.getLogger(__name__)


class ShardError(StoreError):
    """A shard is missing, cut short or altered; the message has its URI and digest."""


def verify_shard(path: Path, shard: Shard, uri: str) -> None:
    """Compares a local file's size and digest with the manifest's. Raises ShardError."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            what = "is cut short" if size < shard.bytes else "is too long"
            raise ShardError(
                f"shard {uri} {what}: {size} bytes where the manifest says {shard.bytes} with sha256 {shard.sha256}"
            )
        found = file_digest(path)
    except FileNotFoundError:
        raise missing_shard(shard, uri) from None
    except ShardError:
        raise
    except OSError as e:
        raise ShardError(f"shard {uri} cannot be read: {e.strerror}") from e
    if found != shard.sha256:
        raise ShardError(f"shard {uri} was altered: its sha256 is {found} where the manifest says {shard.sha256}")


def missing_shard(shard: Shard, uri: str) -> ShardError:
    return ShardError(f"shard {uri} is missing; the manifest says {shard.bytes} bytes with sha256 {shard.sha256}")


def index_key(shard: Shard) -> str:
    return shard.index or f"{shard.name.removesuffix('.tar')}.idx.jsonl"


def find_index(store: Store, shard: Shard) -> Index | None:
    """Returns a shard's stored index if its digest is the manifest's; None if the index can be rebuilt from the tar.

    Raises ShardError if a selection's index is missing or altered, since the tar does not contain the selection.
    """
    home = open_store(shard.index_root) if shard.index_root else store
    key = f"{home.uri}/{index_key(shard)}"
    if not shard.index_sha256:
        if shard.index:
            raise ShardError(
                f"shard {store.uri}/{shard.name}: the manifest has no digest of its selection's index {key}; "
                "select again"
            )
        return None
    try:
        index = Index(home.get(index_key(shard)))
    except MissingKeyError:
        if shard.index:
            raise ShardError(
                f"shard {store.uri}/{shard.name}: the index of its selection, {key}, is missing; select again"
            ) from None
        return None
    if index.digest != shard.index_sha256:
        if shard.index:
            raise ShardError(
                f"the index {key} of a selection was altered: its sha256 is {index.digest} where the manifest says "
                f"{shard.index_sha256}; select again"
            )
        log.warning("the digest of index %s is not the manifest's, so the shard is read without it", key)
        return None
    if len(index) != shard.samples:
        raise ShardError(f"the index {key} has {len(index)} samples where the manifest says {shard.samples}")
    return index


def index_tar(path: Path, shard: Shard, uri: str, rejected: Counter[str]) -> Index:
    """Builds a shard's index from the tar's headers. Raises ShardError if it is not the manifest's."""
    try:
        index = Index.scan(path, rejected, shard.layout.keys)
    except tarfile.TarError as e:
        raise ShardError(f"shard {uri} with sha256 {shard.sha256} cannot be read as a tar: {e}") from e
    except FileNotFoundError:
        raise missing_shard(shard, uri) from None
    if len(index) != shard.samples:
        raise ShardError(
            f"shard {uri} with sha256 {shard.sha256} has {len(index)} samples where the manifest says {shard.samples}"
        )
    if shard.index_sha256 and index.digest != shard.index_sha256:
        raise ShardError(
            f"shard {uri}: an index of its members has sha256 {index.digest} where the manifest says "
            f"{shard.index_sha256}; ingest it again"
        )
    return index
