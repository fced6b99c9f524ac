"""A store over a folder."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from blip.storage.store import OLD_SECONDS, MissingKeyError, Store, StoreError, check_key, hidden

LOCK = ".lock"
LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP)
NOWHERE = "nowhere"
"""The stamp of a link that leads nowhere, or of a file that went away meanwhile."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""The hidden name of an object until it is complete."""


class FolderStore(Store):
    """Objects are files. A write goes to a hidden file in the same folder, is synced to disk, then renamed or linked.

    `put_new` and `put_if` are atomic between processes of one machine, and of several machines on a file system with
    links and locks. `put` and `delete` take no lock, so do not use them on keys that are updated by `put_if`.
    Unlike on S3, a key cannot be both an object and a folder of others.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.abspath(folder))
        self.uri = str(self.folder)

    def get(self, key: str) -> bytes:
        with self.errors(key):
            return self.path(key).read_bytes()

    def read(self, key: str, offset: int, size: int) -> bytes:
        with self.errors(key), self.path(key).open("rb") as f:
            data = os.pread(f.fileno(), size, offset)
        if len(data) != size:
            raise StoreError(f"{self.uri}/{key} ends before byte {offset + size}")
        return data

    def put(self, key: str, data: bytes) -> None:
        with self.temporary(key) as temporary:
            write_synced(temporary, data)
            os.replace(temporary, self.path(key))

    def put_file(self, key: str, path: str | Path, advance: Callable[[int], object] | None = None) -> None:
        with self.temporary(key) as temporary:
            shutil.copyfile(path, temporary)
            sync(temporary)
            os.replace(temporary, self.path(key))
        if advance:
            advance(Path(path).stat().st_size)

    def fetch(self, key: str, path: str | Path) -> None:
        temporary = Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with self.errors(key):
                shutil.copyfile(self.path(key), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        with self.errors(key):
            return self.path(key).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        top = self.folder / prefix.rpartition("/")[0]
        found = []
        seen: set[tuple[int, int]] = set()  # of folders, since links may lead back to one
        for folder, folders, names in os.walk(top, followlinks=True):
            status = os.stat(folder)
            if (place := (status.st_dev, status.st_ino)) in seen:
                folders[:] = []
                continue
            seen.add(place)
            inside = Path(folder).relative_to(self.folder)
            folders[:] = [name for name in sorted(folders) if (inside / name).as_posix().startswith(prefix)]
            keys = [(inside / name).as_posix() for name in names]
            found += [key for key in keys if key.startswith(prefix) and not hidden(key)]
        return sorted(found)

    def stamps(self, prefix: str = "") -> dict[str, str]:
        found = {}
        for key in self.list(prefix):
            try:
                found[key] = file_stamp(self.path(key))
            except OSError as error:
                if error.errno not in LEADS_NOWHERE:
                    raise StoreError(f"{self.uri}/{key}: {error}") from error
                found[key] = NOWHERE
        return found

    def ages(self, prefix: str = "") -> dict[str, float]:
        now, found = time.time(), {}
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # another process may remove it meanwhile
                found[key] = now - self.path(key).stat().st_mtime
        return found

    def sweep(self, age: float = OLD_SECONDS) -> int:
        swept = 0
        for path in self.folder.rglob(".*.tmp"):
            with suppress(OSError):  # already removed, or owned by another user
                if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > age:
                    path.unlink()
                    swept += 1
        return swept

    def delete(self, key: str) -> None:
        with self.errors(key):
            self.path(key).unlink(missing_ok=True)

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self.get(key)
        except MissingKeyError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def put_new(self, key: str, data: bytes) -> bool:
        with self.temporary(key) as temporary:
            write_synced(temporary, data)
            try:
                os.link(temporary, self.path(key))  # unlike rename, it never replaces
            except FileExistsError:
                return False
            return True

    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        with self.temporary(key) as temporary:
            write_synced(temporary, data)
            with (self.path(key).parent / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file releases the lock
                current = self.get_tagged(key)
                if current is None or current[1] != tag:
                    return False
                os.replace(temporary, self.path(key))
            return True

    def join(self, *parts: str) -> Self:
        return type(self)(self.folder.joinpath(*map(check_key, parts)))

    def path(self, key: str) -> Path:
        return self.folder / check_key(key)

    @contextmanager
    def temporary(self, key: str) -> Iterator[Path]:
        """Yields a hidden path to write to in the object's folder; at the end syncs the folder and removes the path."""
        path = self.path(key)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        with self.errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                sync(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turns errors of the operating system into StoreErrors that name the object."""
        try:
            yield
        except StoreError:
            raise
        except OSError as e:
            if e.errno in LEADS_NOWHERE and str(e.filename) == str(self.path(key)):
                raise MissingKeyError(f"{self.uri}/{key} does not exist") from e
            raise StoreError(f"{self.uri}/{key}: {e}") from e


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync(path: Path) -> None:
    """Syncs a file's content or a folder's entries to disk, if the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_stamp(path: str | Path) -> str:
    """Returns a text that changes with a file: its size and the time of its change. Raises OSError."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"
