"""Checks of the places that options name, before the work starts."""

import errno
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from blip.cli.mistakes import full_disk, mistake

MAX_NAME_BYTES = 255
"""Bytes of a file's name on common file systems."""


def existing_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's folder. Raises ConfigError if it cannot be listed."""
    if value is not None:
        check_access(param, value, lambda: os.listdir(value))
    return value


def existing_data(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's folder of manifests. Raises ConfigError if it cannot be listed, or has none."""
    folder = existing_folder(param, value)
    if folder and not any(folder.glob("*.json")):
        raise mistake(
            f"{option_name(param)} {folder}: has no manifest (gold.json, web.json, ...); name the folder that "
            "`blip ingest`, `blip capfilt` or `blip select` wrote"
        )
    return folder


def existing_model(param: typer.CallbackParam, value: Any) -> Any:
    """Returns an option's models. Raises ConfigError for a bare word that is no file: hub names have an owner."""
    for source in [value] if isinstance(value, str) else value or []:
        name = source.rpartition("=")[2]
        if not re.search(r"[/:]|^[0-9a-f]{32}$", name) and not Path(name).exists():
            raise mistake(f"{option_name(param)} {name}: No such file or directory, and no hub name as owner/{name}")
    return value


def existing_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's file. Raises ConfigError if it cannot be read."""
    if value is not None:
        check_access(param, value, lambda: value.open("rb").close())
    return value


def writable_folder(param: typer.CallbackParam, value: Any) -> Any:
    """Returns an option's folder, which need not exist. Raises ConfigError if it cannot be written.

    A store, which an option may be if its value is a text, is not checked but for one that is only read.
    """
    check_scheme(param, value)
    if value is not None and "://" not in str(value):
        check_access(param, value, lambda: check_folder_writable(Path(value)))
    return value


def writable_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's file, which need not exist. Raises ConfigError if it cannot be written."""
    check_scheme(param, value)
    if value is not None and value.is_dir():
        raise mistake(f"{option_name(param)} {value}: is a folder, not a file")
    if value is not None:
        check_access(param, value, lambda: check_folder_writable(value.parent))
    return value


def check_scheme(param: typer.CallbackParam, value: Any) -> None:
    """Raises ConfigError for a store's URI where a place of this machine is wanted, or a store that can be written."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/", str(value))
    if scheme is None or Path(scheme[0]).exists():
        return
    if isinstance(value, Path):
        kept = " (what is large goes to --store)" if option_name(param) == "--out" else ""
        raise mistake(f"{option_name(param)} {value}: must be a place of this machine{kept}, not in {scheme[1]}://")
    if scheme[1] not in ("s3", "file"):
        raise mistake(
            f"{option_name(param)} {value}: {scheme[1]}:// is not written to; name a folder, or s3://bucket/prefix"
        )


def check_folder_writable(folder: Path) -> None:
    """Writes a temporary file to a folder, or to its nearest parent that exists. Raises OSError."""
    existing = folder.absolute()
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in existing.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    while not os.path.lexists(existing):
        existing = existing.parent
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def check_access(param: typer.CallbackParam, value: Any, access: Callable[[], object]) -> None:
    """Tries to access an option's path. Raises ConfigError with the message of the operating system."""
    try:
        access()
    except OSError as error:
        shown = " ".join(f"{option_name(param)} {value}".split())
        raise mistake(f"{shown}: {error.strerror}{full_disk(error, str(value))}") from None


def option_name(param: typer.CallbackParam) -> str:
    return max(param.opts, key=len)
