"""What every store can do."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from blip.redaction import redact

OLD_SECONDS = 6 * 3600.0
"""What nobody finished in so long was left by a process that was killed."""


class StoreError(OSError):
    """A store that cannot do what was asked; the message names the URI, without secrets."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class MissingKeyError(StoreError):
    """An object that does not exist."""


class Store(ABC):
    """Objects by key under one URI, with the same meaning over a folder and over S3.

    A key is a relative path of parts joined by `/`; a part is not empty and does not begin with a dot (such names are the store's own).
    A write is seen whole or not at all. Every method may raise StoreError, and MissingKeyError where it reads what is not there.
    """

    uri: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The object's bytes."""

    @abstractmethod
    def read(self, key: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on; raises StoreError when the object ends before."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes the object, whatever was there."""

    @abstractmethod
    def put_file(self, key: str, path: str | Path) -> None:
        """Writes the object from a local file."""

    @abstractmethod
    def fetch(self, key: str, path: str | Path) -> None:
        """Copies the object to a local file, which appears only when it is complete."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix` (any text, not only a folder's name), sorted."""

    @abstractmethod
    def stamps(self, prefix: str = "") -> dict[str, str]:
        """As `list`, each key with what a listing tells of the object's content: another content has another stamp."""

    @abstractmethod
    def ages(self, prefix: str = "") -> dict[str, float]:
        """As `list`, each key with the seconds since its object was written."""

    @abstractmethod
    def sweep(self, age: float = OLD_SECONDS) -> int:
        """Removes what killed writers left unfinished and is older than `age` seconds; returns how many pieces that were."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object; removing what is not there is no error."""

    @abstractmethod
    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """The object's bytes and the tag that `put_if` takes; None when it is not there."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Writes the object if there is none and says whether it did: of many writers at once, exactly one does."""

    @abstractmethod
    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        """Replaces the object if it still has this tag and says whether it did: of many writers with one tag, exactly one does."""

    @abstractmethod
    def join(self, *parts: str) -> Self:
        """The store one or more folders below."""

    def path(self, key: str) -> Path | None:
        """The local file that is the object, where there is one: it can be read in place."""
        check(key)
        return None

    def __truediv__(self, part: str) -> Self:
        return self.join(part)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def check(key: str) -> str:
    """The key itself, if it is one. Raises StoreError that says what a key is."""
    if any(not part or part.startswith(".") for part in key.split("/")):
        raise StoreError(f"key {key!r}: a key is a relative path whose parts are not empty and do not begin with a dot")
    return key


def hidden(key: str) -> bool:
    """Whether a name in a listing is not a key: the store's own files, and what other programs hide in folders."""
    return any(not part or part.startswith(".") for part in key.split("/"))
