"""Shards at hand: open files of the ones in use, and local copies of the ones that lie elsewhere."""

import fcntl
import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blip.data.manifest import Shard
from blip.data.shards import OpenShard, RangedShard, ShardFile, missing, verify
from blip.storage import MissingKeyError, Store

OPEN_SHARDS = 512
"""Files open at a time in a process; systems commonly allow 1024."""


class ShardCache:
    """Opens shards by number. Where the store is a folder they are read in place; else they are copied whole to a local folder.

    A copy is named by its digest and appears there only once verified, so processes of one machine share the folder: one fetches, the
    others wait. The copies used least recently go when there are more than `limit` bytes. With `ranged` nothing is copied.
    """

    def __init__(self, shards: Sequence[tuple[Store, Shard]], folder: Path, limit: int, ranged: bool = False):
        self.shards, self.folder, self.limit, self.ranged = shards, folder, limit, ranged
        self.open: OrderedDict[int, OpenShard] = OrderedDict()
        self.verified: set[int] = set()

    def __getitem__(self, number: int) -> OpenShard:
        if number in self.open:
            self.open.move_to_end(number)
            return self.open[number]
        shard = self.open[number] = self.opened(number)
        if len(self.open) > OPEN_SHARDS:
            self.open.popitem(last=False)[1].close()
        return shard

    def opened(self, number: int) -> OpenShard:
        store, shard = self.shards[number]
        if path := store.path(shard.name):
            file = ShardFile(store, shard, path, verified=number in self.verified)
            self.verified.add(number)
            return file
        if self.ranged:
            return RangedShard(store, shard)
        return ShardFile(store, shard, self.copy(number), verified=True)

    def copy(self, number: int) -> Path:
        """The verified local copy of a shard, fetched if there is none."""
        store, shard = self.shards[number]
        path = self.folder / f"{shard.sha256}.tar"
        if touch(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not touch(path):
                fetch(store, shard, path)
                lock.unlink(missing_ok=True)  # who waits for it holds the file still, and finds the copy
                self.evict(keep=path)
        return path

    def evict(self, keep: Path) -> None:
        """Removes the copies used least recently; processes that have one open read on."""
        copies = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total > self.limit and path != keep:
                path.unlink(missing_ok=True)
                total -= size

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "open": OrderedDict()}


def touch(path: Path) -> bool:
    """Marks a copy as used now, and says whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def fetch(store: Store, shard: Shard, path: Path) -> None:
    uri = f"{store.uri}/{shard.name}"
    temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        store.fetch(shard.name, temporary)
        verify(temporary, shard, uri)
        temporary.rename(path)
    except MissingKeyError:
        raise missing(shard, uri) from None
    finally:
        temporary.unlink(missing_ok=True)
