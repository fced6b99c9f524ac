"""A read-only store over the places that fsspec reaches: `gs://`, `hf://`, `https://` and others."""

import importlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

from blip.storage.store import (
    OLD_SECONDS,
    MissingKeyError,
    Store,
    StoreError,
    UnusableStoreError,
    check_key,
    hidden,
    unsigned,
)

WEB = ("http", "https")
"""Schemes of servers that list nothing, or pages of links."""
DEPTH = 4
"""Levels of linked folders that are listed below a page."""
STAMPS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "updated", "LastModified", "Last-Modified", "created")
"""The fields of an entry that change with its content, the surest first."""
WEB_CLIENT = "aiohttp"
"""The package by which fsspec reads from web servers, and which it does not bring along."""
WITHOUT_KEYS: dict[str, dict[str, Any]] = {
    "gs": {"token": "anon"},
    "gcs": {"token": "anon"},
    "hf": {"token": False},
    "az": {"anon": True},
    "abfs": {"anon": True},
}
"""What a file system is told so that it sends no keys, by scheme."""
DENIED = (401, 403)
OF_GOOGLE = "set GOOGLE_APPLICATION_CREDENTIALS to a file of keys, or data.anonymous=true for data in a public bucket"
KEYS = {
    "gs": OF_GOOGLE,
    "gcs": OF_GOOGLE,
    "hf": "set HF_TOKEN, or run hf auth login",
}
"""How keys are given, by scheme."""
LONGEST = 200
"""Characters of another library's message."""


def is_web_address(value: object) -> bool:
    """Returns whether a value is an address of a web server."""
    return isinstance(value, str) and value.lower().startswith(tuple(f"{scheme}://" for scheme in WEB))


def remote_schemes() -> tuple[str, ...]:
    """Returns the schemes that fsspec knows; none without it."""
    try:
        from fsspec.registry import known_implementations  # comes with an extra
    except ModuleNotFoundError:
        return ()
    return tuple(known_implementations)


class RemoteStore(Store):
    """Objects below a URI of fsspec, which can be listed and read but not written.

    A web server's folder is listed by the links of its page; a file on one needs no listing.
    """

    def __init__(self, uri: str, anonymous: bool = False):
        """`anonymous` sends no keys, which public buckets accept."""
        self.uri = uri.rstrip("/") if not uri.endswith("://") else uri
        self.scheme, _, rest = uri.partition("://")
        self.anonymous = anonymous or unsigned(f"{self.scheme}://{rest.partition('/')[0]}")
        check_package(self.scheme, self.uri)

    def at(self, key: str) -> tuple[Any, str]:
        """Returns the file system and the path in it. fsspec keeps one a process and thread, so forks share none."""
        from fsspec.core import url_to_fs

        options = WITHOUT_KEYS.get(self.scheme, {}) if self.anonymous else {}
        fs, root = url_to_fs(self.uri, **options)
        return fs, "/".join(part for part in (root.rstrip("/"), check_key(key) if key else "") if part)

    def get(self, key: str) -> bytes:
        with self.errors(key):
            fs, path = self.at(key)
            return fs.cat_file(path)

    def read(self, key: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with self.errors(key):
            fs, path = self.at(key)
            data = fs.cat_file(path, start=offset, end=offset + size)
        if len(data) > size:  # a web server without ranges sends the whole object
            data = data[offset : offset + size]
        if len(data) != size:
            raise StoreError(f"{self.uri}/{key} ends before byte {offset + size}")
        return data

    def fetch(self, key: str, path: str | Path) -> None:
        temporary = Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with self.errors(key):
                fs, place = self.at(key)
                fs.get_file(place, str(temporary))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        try:
            return self.info(key).get("type") == "file"
        except MissingKeyError:
            return False

    def size(self, key: str) -> int:
        found = self.info(key).get("size")
        if found is None:
            raise StoreError(f"{self.uri}/{key}: its size is not told")
        return int(found)

    def reads_parts(self, key: str) -> bool:
        entry = self.info(key)
        return entry.get("size") is not None and (self.scheme not in WEB or bool(entry.get("partial")))

    def list(self, prefix: str = "") -> list[str]:
        return [*self.stamps(prefix)]

    def stamps(self, prefix: str = "") -> dict[str, str]:
        if prefix and self.scheme in WEB:
            try:
                return {prefix: stamp_of(self.info(prefix))}
            except MissingKeyError:
                return {}
        with self.errors(prefix):
            fs, root = self.at("")
            top = "/".join(part for part in (root.rstrip("/"), prefix.rpartition("/")[0]) if part)
            fs.invalidate_cache()
            depth = {"maxdepth": DEPTH} if self.scheme in WEB else {}
            try:
                entries = fs.find(top, detail=True, **depth)
            except FileNotFoundError as e:
                if e.__cause__ is None:
                    return {}
                raise
        below = len(root.rstrip("/")) + 1 if root.rstrip("/") else 0
        found = {path[below:]: entry for path, entry in entries.items()}
        return {
            key: stamp_of(found[key])
            for key in sorted(found)
            if key.startswith(prefix) and not hidden(key) and not key.startswith("?")
        }

    def info(self, key: str) -> dict[str, Any]:
        with self.errors(key):
            fs, path = self.at(key)
            return fs.info(path)

    def join(self, *parts: str) -> Self:
        return type(self)("/".join([self.uri, *map(check_key, parts)]), self.anonymous)

    def put(self, key: str, data: bytes) -> None:
        self.refuse(key, data)

    def put_file(self, key: str, path: str | Path, advance: Callable[[int], object] | None = None) -> None:
        self.refuse(key, path, advance)

    def put_new(self, key: str, data: bytes) -> bool:
        self.refuse(key, data)

    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        self.refuse(key, data, tag)

    def delete(self, key: str) -> None:
        self.refuse(key)

    def ages(self, prefix: str = "") -> dict[str, float]:
        self.refuse(prefix)

    def sweep(self, age: float = OLD_SECONDS) -> int:
        self.refuse("", age)

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        self.refuse(key)

    def refuse(self, key: str, *_: object) -> NoReturn:
        raise UnusableStoreError(
            f"{self.uri}/{key}: {self.scheme}:// is only read, as a source of data; name a folder or "
            "s3://bucket/prefix for what is written"
        )

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turns what fsspec and its file systems raise into StoreErrors that name the object."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as e:
            cause = e.__cause__  # of a web server that does not answer, fsspec says that there is no such file
            if status_of(cause) in DENIED:
                raise MissingKeyError(self.refused(key, cause)) from None
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) and not status_of(cause):
                raise StoreError(f"{self.where(key)}: {said_by(cause)}") from None
            raise MissingKeyError(f"{self.where(key)} does not exist") from e
        except Exception as e:  # each file system raises its client's own
            if status_of(e) in DENIED:
                raise StoreError(self.refused(key, e)) from None
            raise StoreError(f"{self.where(key)}: {said_by(e)}") from None

    def refused(self, key: str, error: BaseException | None) -> str:
        """Returns the line on a server that shows nothing, or not to everyone."""
        way_out = "" if self.anonymous else KEYS.get(self.scheme, "")
        return f"{self.where(key)}: does not exist, or needs keys{way_out and f' ({way_out})'}: {said_by(error)}"

    def where(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri


def status_of(error: BaseException | None) -> int:
    """Returns the HTTP status in the error of a file system's client; 0 if it has none."""
    places = (error, getattr(error, "response", None))
    names = ("status", "status_code", "code")
    found = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in found if isinstance(value, int)), 0)


def said_by(error: BaseException | None) -> str:
    """Returns the message of an error in one line."""
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def check_package(scheme: str, uri: str) -> None:
    """Raises UnusableStoreError if the package for a scheme is not installed, or cannot be imported."""
    from fsspec.registry import known_implementations

    module = known_implementations[scheme]["class"].rpartition(".")[0]
    for part in (WEB_CLIENT if scheme in WEB else module, module):
        try:
            importlib.import_module(part)
        except ImportError as e:
            package, missing = part.partition(".")[0], (e.name or part).partition(".")[0]
            if missing == package or package == "fsspec":
                raise UnusableStoreError(
                    f"{uri} is read by the package {missing}, which is missing: pip install {missing}"
                ) from None
            raise UnusableStoreError(
                f"{uri} is read by the package {package}, which cannot be imported ({said_by(e)}): "
                f"pip install --force-reinstall {package}"
            ) from None


def stamp_of(entry: dict[str, Any]) -> str:
    """Returns what tells in a listing that an object changed; empty if nothing does."""
    sure = next((str(entry[name]) for name in STAMPS if entry.get(name)), "")
    return f"{entry.get('size') or 0}-{sure}" if sure else ""
