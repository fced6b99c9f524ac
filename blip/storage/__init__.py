"""Object stores: one small interface over a folder, an S3 bucket and, to read, what fsspec reaches, chosen by URI."""

from pathlib import Path

from blip.storage.folder import FolderStore, file_stamp
from blip.storage.object_file import ObjectFile
from blip.storage.output import output_folder, write_file
from blip.storage.probe import probe
from blip.storage.remote import RemoteStore, is_web_address, remote_schemes
from blip.storage.scratch import scratch, writing
from blip.storage.store import MissingKeyError, Store, StoreError, UnusableStoreError, check_key, hidden

__all__ = [
    "FolderStore",
    "MissingKeyError",
    "ObjectFile",
    "Store",
    "StoreError",
    "UnusableStoreError",
    "check_key",
    "file_stamp",
    "hidden",
    "is_web_address",
    "locate",
    "open_store",
    "output_folder",
    "probe",
    "scratch",
    "write_file",
    "writing",
]


def open_store(uri: str | Path, anonymous: bool = False) -> Store:
    """Returns the store of a URI: a folder (a path or `file://`) or `s3://bucket/prefix`. Does no I/O.

    Other schemes that fsspec knows, such as `gs://`, `hf://` and `https://`, are stores that are only read.

    boto3 reads the endpoint, region, keys and profile of S3 from the environment, `AWS_ENDPOINT_URL` among them.
    `AWS_NO_SIGN_REQUEST` lists public buckets, separated by commas, that are read without keys; 1 means all of them.
    With `anonymous` this one is.
    Raises UnusableStoreError for an unknown scheme.
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
                raise UnusableStoreError(
                    f"store {str(uri)!r} needs {error.name}: pip install 'blip-bootstrap[train]'"
                ) from None
            return S3Store(str(uri), anonymous=anonymous)
        case _ if scheme in remote_schemes():
            return RemoteStore(str(uri), anonymous)
        case _:
            raise UnusableStoreError(
                f"store {str(uri)!r}: the scheme {scheme!r} is not known; use a folder or s3://bucket/prefix, or "
                "to read gs://, hf://, https:// or another one that fsspec knows"
            )


def locate(uri: str | Path) -> tuple[Store, str]:
    """Returns the store and the key of an object's URI: `s3://bucket/a/b.json` is `b.json` in `s3://bucket/a`.

    Raises StoreError if the URI ends in a slash or has no folder part.
    """
    folder, _, name = str(uri).rpartition("/")
    if not name or folder.endswith("/"):
        raise StoreError(f"{str(uri)!r} names a folder, not an object")
    if not folder:
        folder = "/" if str(uri).startswith("/") else "."
    return open_store(folder), name
