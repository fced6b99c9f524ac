"""A mirror: a folder of a store with a folder of files for each name on the hub, and a record of their digests."""

import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants
from pydantic import Field

from blip.config import Config, ConfigError, validate
from blip.digest import file_digest, value_digest
from blip.storage import Store, StoreError, open_store, writing

VARIABLE = "BLIP_WEIGHTS"
"""The variable with the URI of the mirror in which names on the hub are looked up first."""
MIRROR_RECORD = "fetched.json"
"""The name of the record in the folder of a name."""


class FileRecord(Config):
    """A file as it was fetched."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    """Bytes."""


class MirrorRecord(Config):
    """The content of `fetched.json`."""

    name: str
    """The name on the hub."""
    revision: str = ""
    """The commit of the hub's repository."""
    files: dict[str, FileRecord] = Field(default={})


def mirror_uri() -> str:
    """Returns the URI of the mirror, empty without one."""
    return os.environ.get(VARIABLE, "").rstrip("/")


def folder_of(mirror: str, name: str) -> Store:
    """Returns the folder of a name on the hub."""
    return open_store(mirror).join(*name.split("/"))


def read_mirror_record(store: Store) -> MirrorRecord | None:
    """Returns the record in a folder of a store, or None without one. Raises StoreError if it is not valid."""
    found = store.get_tagged(MIRROR_RECORD)
    if found is None:
        return None
    where = f"{store.uri}/{MIRROR_RECORD}"
    try:
        values = json.loads(found[0])
        return validate(MirrorRecord, values if isinstance(values, dict) else {}, where)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, ConfigError) else f"{where} is not JSON"
        raise StoreError(f"{reason}; delete it, and fill the mirror again by blip fetch-weights") from None


def check_digest(path: Path, expected: FileRecord, where: str) -> None:
    """Raises StoreError if a file is not the one that was fetched."""
    if path.stat().st_size != expected.size or file_digest(path) != expected.sha256:
        raise StoreError(
            f"{where} is not the file that was fetched: its SHA-256 is not {expected.sha256}, or its size not "
            f"{expected.size}; delete it, and fill the mirror again by blip fetch-weights"
        )


verified: set[Path] = set()
"""Copies that this process has verified."""


def copy_of_mirror(store: Store, files: Mapping[str, FileRecord]) -> Path:
    """Returns a folder of this machine with verified copies of a store's files.

    It lies in HF_HOME, beside the hub's own cache, and like that serves all processes of the machine: one downloads,
    the others wait for its lock. Nothing removes it. Raises StoreError if a file is not the one that was fetched.
    """
    folder = copies_folder() / value_digest({name: file.sha256 for name, file in files.items()})[:16]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, expected in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if not is_valid(folder / name, expected):
                    fetch_mirrored(store, name, folder / name, expected)
                verified.add(folder / name)
    return folder


def copies_folder() -> Path:
    """Returns the folder of this machine for copies of files in mirrors, and for unfinished downloads."""
    return Path(constants.HF_HOME) / "blip"


def is_valid(path: Path, expected: FileRecord) -> bool:
    """Returns whether a copy is complete and unaltered; a process checks the digest once."""
    if not path.is_file() or path.stat().st_size != expected.size:
        return False
    return path in verified or file_digest(path) == expected.sha256


def fetch_mirrored(store: Store, name: str, path: Path, expected: FileRecord) -> None:
    """Copies a file to `path`, which appears only if it is the one that was fetched. Raises StoreError."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        store.fetch(name, temporary)
        check_digest(temporary, expected, f"{store.uri}/{name}")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
