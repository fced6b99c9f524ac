"""A store over a folder."""

import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from blip.storage.store import OLD_SECONDS, MissingKeyError, Store, StoreError, check, hidden

LOCK = ".lock"
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""The hidden name that an object has until it is whole."""


class FolderStore(Store):
    """Objects are files. A write goes to a hidden file beside, reaches the disk, and is then renamed or linked to its name.

    `put_new` and `put_if` are atomic between processes (of one machine, or of several on a file system with links and locks).
    `put` and `delete` take no lock: keys that change hands by `put_if` are written by `put_new` and `put_if` alone.
    A key cannot be both an object and a folder of others, as it could on S3.
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
        with self.beside(key) as temporary:
            write(temporary, data)
            os.replace(temporary, self.path(key))

    def put_file(self, key: str, path: str | Path) -> None:
        with self.beside(key) as temporary:
            shutil.copyfile(path, temporary)
            sync(temporary)
            os.replace(temporary, self.path(key))

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

    def list(self, prefix: str = "") -> list[str]:
        top = self.folder / prefix.rpartition("/")[0]
        found = []
        for folder, folders, names in os.walk(top):
            inside = Path(folder).relative_to(self.folder)
            folders[:] = [name for name in folders if (inside / name).as_posix().startswith(prefix)]
            found += [key for name in names if (key := (inside / name).as_posix()).startswith(prefix) and not hidden(key)]
        return sorted(found)

    def stamps(self, prefix: str = "") -> dict[str, str]:
        found = {}
        for key in self.list(prefix):
            with self.errors(key):
                told = self.path(key).stat()
            found[key] = f"{told.st_size}-{told.st_mtime_ns}"
        return found

    def ages(self, prefix: str = "") -> dict[str, float]:
        now, found = time.time(), {}
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # another process removes, too
                found[key] = now - self.path(key).stat().st_mtime
        return found

    def sweep(self, age: float = OLD_SECONDS) -> int:
        swept = 0
        for path in self.folder.rglob(".*.tmp"):
            with suppress(OSError):  # it is gone, or not ours to remove
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
        with self.beside(key) as temporary:
            write(temporary, data)
            try:
                os.link(temporary, self.path(key))  # unlike a rename, refuses to replace; unlike O_EXCL, appears with its content
            except FileExistsError:
                return False
            return True

    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        with self.beside(key) as temporary:
            write(temporary, data)
            with (self.path(key).parent / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file releases it, and so does the end of the process
                current = self.get_tagged(key)
                if current is None or current[1] != tag:
                    return False
                os.replace(temporary, self.path(key))
            return True

    def join(self, *parts: str) -> Self:
        return type(self)(self.folder.joinpath(*map(check, parts)))

    def path(self, key: str) -> Path:
        return self.folder / check(key)

    @contextmanager
    def beside(self, key: str) -> Iterator[Path]:
        """A hidden name in the object's folder to write to; afterwards the folder's entries are on the disk and the name is gone."""
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
        """Names the object in whatever the operating system says."""
        try:
            yield
        except StoreError:
            raise
        except OSError as e:
            if isinstance(e, FileNotFoundError) and str(e.filename) == str(self.path(key)):
                raise MissingKeyError(f"{self.uri}/{key} does not exist") from e
            raise StoreError(f"{self.uri}/{key}: {e}") from e


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync(path: Path) -> None:
    """Brings a file's content or a folder's entries to the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
