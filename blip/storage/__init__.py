"""Where bytes live: one small interface over a folder and over an S3 bucket, chosen by URI."""

from pathlib import Path

from blip.storage.folder import FolderStore
from blip.storage.probe import probe
from blip.storage.scratch import scratch, writing
from blip.storage.store import MissingKeyError, Store, StoreError, check

__all__ = ["FolderStore", "MissingKeyError", "Store", "StoreError", "check", "locate", "open_store", "probe", "scratch", "writing"]


def open_store(uri: str | Path) -> Store:
    """The store of a URI: a folder (a path or `file://`) or `s3://bucket/prefix`; nothing is touched yet.

    The endpoint, the region, the keys and the profile of S3 come from the environment as boto3 reads it, `AWS_ENDPOINT_URL` among them.
    `AWS_NO_SIGN_REQUEST` names public buckets, joined by commas, that are read without keys; 1 stands for all.
    """
    scheme, separator, rest = str(uri).partition("://")
    if not separator:
        return FolderStore(uri)
    match scheme:
        case "file":
            return FolderStore(rest)
        case "s3":
            try:
                from blip.storage.s3 import S3Store  # boto3 comes with an extra
            except ModuleNotFoundError as error:
                raise StoreError(f"store {str(uri)!r} needs {error.name}: pip install 'blip-bootstrap[train]'") from None
            return S3Store(str(uri))
        case _:
            raise StoreError(f"store {str(uri)!r}: the scheme {scheme!r} is not known; use a folder or s3://bucket/prefix")


def locate(uri: str | Path) -> tuple[Store, str]:
    """The store and the key of one object's URI: `s3://bucket/a/b.json` is `b.json` in `s3://bucket/a`."""
    folder, _, name = str(uri).rpartition("/")
    if not name or folder.endswith("/"):
        raise StoreError(f"{str(uri)!r} names a folder, not an object")
    return open_store(folder or ("/" if str(uri).startswith("/") else ".")), name
