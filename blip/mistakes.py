"""User errors on the command line: checked before the work starts, and reported in one line."""

import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from blip.config import EXIT_CONFIG, ConfigError, one_line, presets
from blip.storage import MissingKeyError, StoreError
from blip.storage.scratch import DISK_ERRORS

MAX_NAME_BYTES = 255
"""Bytes of a file's name on common file systems."""


def user_error(error: Exception) -> tuple[str, int] | None:
    """Returns the line and the exit code for an error that users can resolve, or None for a bug.

    The code is 42 if the same command cannot succeed, and 1 if it may: a store, a disk or a server may recover.
    """
    if isinstance(error, typer.exceptions.TyperException):
        message = getattr(error, "format_message", error.__str__)()
        return one_line(f"{message} See --help."), EXIT_CONFIG
    if isinstance(error, ConfigError | MissingKeyError):
        return str(error), EXIT_CONFIG
    if isinstance(error, StoreError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno is not None:
        return describe_os_error(error), 1
    for kind, code in expected_errors():
        if isinstance(error, kind):
            return one_line(str(error)), code
    if "No space left on device" in str(error):  # an error of safetensors, which has no path
        folder = tempfile.gettempdir()
        return f"a disk is full: {one_line(str(error))}; this process writes temporary files to {folder}", 1
    return None


EXPECTED_ERRORS = (
    ("blip.launch.submission", "JobError", 1),
    ("blip.tracking.server", "SettingError", EXIT_CONFIG),
    ("blip.tracking.server", "TrackingError", 1),
    ("blip.training.engine", "NonFiniteError", 1),
    ("blip.workers.local_pool", "WorkerError", 1),
)
"""Module, name and exit code of errors whose messages state the reason of a failure, a class before its bases."""


def expected_errors() -> list[tuple[type[Exception], int]]:
    """Returns the classes of EXPECTED_ERRORS whose modules are loaded; importing the others would take seconds."""
    return [
        (getattr(sys.modules[module], name), code) for module, name, code in EXPECTED_ERRORS if module in sys.modules
    ]


def describe_os_error(error: OSError) -> str:
    """Returns the path, the message of the operating system and, if a disk is full, its mount point."""
    place = error.filename or tempfile.gettempdir()
    disk = f" on the disk at {mount_point(Path(os.fsdecode(place)))}" if error.errno in DISK_ERRORS else ""
    return one_line(f"{os.fsdecode(place)}: {error.strerror}{disk}")


def mount_point(path: Path) -> Path:
    """Returns the mount point of a path."""
    folder = path.absolute()
    while not os.path.ismount(folder):
        folder = folder.parent
    return folder


def required_preset(value: str) -> str:
    """Returns the preset. Raises ConfigError if it is empty."""
    if not value:
        raise ConfigError(
            f"--preset is missing: one of {', '.join(presets())}, or a .yaml file that changes one of them"
        )
    return value


def existing_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's folder. Raises ConfigError if it cannot be listed."""
    if value is not None:
        check_access(param, value, lambda: os.listdir(value))
    return value


def existing_model(param: typer.CallbackParam, value: Any) -> Any:
    """Returns an option's models. Raises ConfigError for a bare word that is no file: hub names have an owner."""
    for source in [value] if isinstance(value, str) else value or []:
        name = source.rpartition("=")[2]
        if not re.search(r"[/:]|^[0-9a-f]{32}$", name) and not Path(name).exists():
            raise ConfigError(
                f"{option_name(param)} {name}: No such file or directory, and no hub name as owner/{name}"
            )
    return value


def existing_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's file. Raises ConfigError if it cannot be read."""
    if value is not None:
        check_access(param, value, lambda: value.open("rb").close())
    return value


def writable_folder(param: typer.CallbackParam, value: Any) -> Any:
    """Returns an option's folder, which need not exist. Raises ConfigError if it cannot be written.

    A value with a scheme, such as `s3://`, is not checked.
    """
    if value is not None and "://" not in str(value):
        check_access(param, value, lambda: check_folder_writable(Path(value)))
    return value


def writable_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns an option's file, which need not exist. Raises ConfigError if it cannot be written."""
    if value is not None and value.is_dir():
        raise ConfigError(f"{option_name(param)} {value}: is a folder, not a file")
    if value is not None:
        check_access(param, value, lambda: check_folder_writable(value.parent))
    return value


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
        disk = f" on the disk at {mount_point(Path(value))}" if error.errno in DISK_ERRORS else ""
        raise ConfigError(one_line(f"{option_name(param)} {value}: {error.strerror}{disk}")) from None


def option_name(param: typer.CallbackParam) -> str:
    return max(param.opts, key=len)
