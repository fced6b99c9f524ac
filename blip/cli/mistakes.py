"""User errors on the command line, in one line each."""

import os
import sys
import tempfile
from pathlib import Path

import typer

from blip.config import EXIT_CONFIG, ConfigError, one_line
from blip.storage import MissingKeyError, StoreError
from blip.storage.scratch import DISK_ERRORS


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
