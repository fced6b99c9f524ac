"""The interface of a store."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Self

from blip.redaction import redact

UNSIGNED_BUCKETS = "AWS_NO_SIGN_REQUEST"
"""The variable that lists buckets, separated by commas, for requests without a signature; 1, true or yes means all of
S3. Buckets of other services are listed with their scheme, as in `gs://bucket`."""
OLD_SECONDS = 6 * 3600.0
"""Age in seconds from which unfinished temporary data counts as left behind by a killed process."""


class StoreError(OSError):
    """A failed operation of a store; the message names the URI, without secrets."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class MissingKeyError(StoreError):
    """An object that does not exist."""


class UnusableStoreError(StoreError):
    """A store that never does what is asked of it: one that is only read, or for which a package is missing."""


class Store(ABC):
    """Objects by key under one URI, with the same semantics over a folder and over S3.

    A key is a relative path of parts joined by `/`; a part is not empty and does not begin with a dot (such names are
    reserved for the store). Writes are atomic: readers see the whole new object or the old state. Every method may
    raise StoreError, and MissingKeyError if it reads an object that does not exist.
    """

    uri: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Returns the object's bytes."""

    @abstractmethod
    def read(self, key: str, offset: int, size: int) -> bytes:
        """Returns exactly `size` bytes from `offset` on. Raises StoreError if the object ends before."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces the object."""

    @abstractmethod
    def put_file(self, key: str, path: str | Path, advance: Callable[[int], object] | None = None) -> None:
        """Writes or replaces the object from a local file; `advance` is called with numbers of bytes as they go."""

    @abstractmethod
    def fetch(self, key: str, path: str | Path) -> None:
        """Copies the object to a local file, which appears only when it is complete."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Returns whether the object exists."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Returns the number of the object's bytes."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Returns the sorted keys that begin with `prefix`, which is any text, not only a folder's name."""

    @abstractmethod
    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Returns the keys as `list`, each with a stamp from the listing that changes with the object's content."""

    @abstractmethod
    def ages(self, prefix: str = "") -> dict[str, float]:
        """Returns the keys as `list`, each with the seconds since its object was written."""

    @abstractmethod
    def sweep(self, age: float = OLD_SECONDS) -> int:
        """Removes unfinished writes of killed processes that are older than `age` seconds; returns their number."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object, if it exists."""

    @abstractmethod
    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Returns the object's bytes and the tag for `put_if`, or None if the object does not exist."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Writes the object if it does not exist; returns whether it did. Of concurrent writers, exactly one does."""

    @abstractmethod
    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        """Replaces the object if it has this tag; returns whether it did. Of writers with one tag, exactly one does."""

    @abstractmethod
    def join(self, *parts: str) -> Self:
        """Returns the store one or more folders below."""

    def reads_parts(self, key: str) -> bool:  # noqa: ARG002
        """Returns whether `read` transfers only what is asked for."""
        return True

    def path(self, key: str) -> Path | None:
        """Returns the local file of the object, which can be read in place, or None if objects are not local files."""
        check_key(key)
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def unsigned(bucket: str) -> bool:
    """Returns whether the environment lists this bucket as one that is read without keys."""
    return bucket in os.environ.get(UNSIGNED_BUCKETS, "").split(",")


def check_key(key: str) -> str:
    """Returns the key. Raises StoreError if it is not a valid one."""
    if hidden(key):
        raise StoreError(f"key {key!r}: a key is a relative path whose parts are not empty and do not begin with a dot")
    return key


def hidden(key: str) -> bool:
    """Returns whether a name is no valid key: the store's own files, or hidden files of other programs."""
    return any(not part or part.startswith(".") for part in key.split("/"))
