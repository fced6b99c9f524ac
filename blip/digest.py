"""SHA-256 digests of files, folders and plain values."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, leave_out: Collection[str] = ()) -> str:
    """Returns the SHA-256 of the names and bytes of a folder's files.

    `leave_out` holds relative paths of files to ignore.
    """
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(files.keys() - set(leave_out)):
        total.update(f"{name}\0{file_digest(files[name])}\n".encode())
    return total.hexdigest()


def value_digest(values: Any) -> str:
    """Returns the SHA-256 of plain values, whatever the order of keys."""
    return hashlib.sha256(canonical(values)).hexdigest()


def canonical(values: Any) -> bytes:
    """Returns plain values as JSON with sorted keys and no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
