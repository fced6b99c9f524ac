"""Shard cache: open files of the shards in use, and local copies of the shards in remote stores."""

import fcntl
import logging
import os
import stat
import tempfile
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blip.config import ConfigError
from blip.shards.manifest import Shard
from blip.shards.reading import OpenShard, RangedShard, ShardFile
from blip.shards.verification import ShardError, missing_shard, verify_shard
from blip.storage import MissingKeyError, Store

log = logging.getLogger(__name__)

OPEN_SHARDS = 512
"""Open files of a process; systems commonly allow 1024."""


OLD_TEMPORARY = 24 * 3600
"""Age in seconds after which a temporary file is assumed to be left by a killed process."""


class ShardCache:
    """Opens shards by number: in place in a local store, else as whole copies in a local folder.

    Copies are named by digest and renamed into place after they are verified, so the processes of a machine share the
    folder: one downloads, the others wait for its lock. Each process verifies a copy before it first reads it, and
    downloads it again if it was altered. The least recently used copies are removed when they exceed `limit` bytes.
    With `ranged` nothing is copied.
    """

    def __init__(self, shards: Sequence[tuple[Store, Shard]], folder: Path, limit: int, ranged: bool = False):
        self.shards = shards
        self.folder = folder
        self.limit = limit
        self.ranged = ranged
        self.open: OrderedDict[int, OpenShard] = OrderedDict()
        self.verified: set[int] = set()

    def __getitem__(self, number: int) -> OpenShard:
        if number in self.open:
            self.open.move_to_end(number)
            return self.open[number]
        shard = self.open_number(number)
        self.open[number] = shard
        if len(self.open) > OPEN_SHARDS:
            self.open.popitem(last=False)[1].close()
        return shard

    def open_number(self, number: int) -> OpenShard:
        """Opens a shard that is not open yet."""
        store, shard = self.shards[number]
        path = store.path(shard.name)
        if path:
            file = ShardFile(store, shard, path, verified=number in self.verified)
            self.verified.add(number)
            return file
        if self.ranged:
            return RangedShard(store, shard)
        return ShardFile(store, shard, self.copy(number), verified=True)

    def copy(self, number: int) -> Path:
        """Returns the verified local copy of a shard; downloads it if there is none."""
        store, shard = self.shards[number]
        path = self.folder / f"{shard.sha256}.tar"
        if self.is_valid(number, path):
            return path
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not self.is_valid(number, path):
                fetch_verified(store, shard, path)
                self.verified.add(number)
                lock.unlink(missing_ok=True)  # processes that wait for the lock have it open, and then find the copy
                self.evict(keep=path)
        return path

    def is_valid(self, number: int, path: Path) -> bool:
        """Marks a copy as used, and returns whether it exists and matches the manifest; each process checks the digest
        once."""
        if not mark_used(path):
            return False
        if number not in self.verified:
            store, shard = self.shards[number]
            try:
                verify_shard(path, shard, str(path))
            except ShardError as e:
                log.warning("the local copy of shard %s/%s is downloaded again: %s", store.uri, shard.name, e)
                return False
            self.verified.add(number)
        return True

    def evict(self, keep: Path) -> None:
        """Removes the least recently used copies, and files left by killed processes. Processes keep the files that
        they have open."""
        for path in [*self.folder.glob("*.tmp"), *self.folder.glob(".*.tmp")]:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > OLD_TEMPORARY:
                    path.unlink()
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


def private_folder() -> Path:
    """Returns a folder for copies in the system's temporary folder, accessible to this user only.

    Raises ConfigError if it belongs to another user, who could replace the copies.
    """
    folder = Path(tempfile.gettempdir()) / f"blip-shards-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} is not a folder of this user, so copies of shards in it cannot be trusted: remove it, or set "
            "loader.cache to a folder that no other user may write to"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def mark_used(path: Path) -> bool:
    """Sets a copy's modification time to now; returns whether the copy exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def fetch_verified(store: Store, shard: Shard, path: Path) -> None:
    """Downloads a shard to `path`, which appears only if the digest is right. Raises ShardError."""
    uri = f"{store.uri}/{shard.name}"
    temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        store.fetch(shard.name, temporary)
        verify_shard(temporary, shard, uri)
        temporary.rename(path)
    except MissingKeyError:
        raise missing_shard(shard, uri) from None
    finally:
        temporary.unlink(missing_ok=True)
