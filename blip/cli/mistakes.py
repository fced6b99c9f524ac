"""User errors on the command line, in one line each.

What takes time to import is imported where an error has come: `blip --help` waits for this module.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from blip.config import ConfigError


def mistake(message: str) -> "ConfigError":
    """Returns the error for options that cannot be meant."""
    from blip.config import ConfigError

    return ConfigError(message)


def user_error(error: Exception, verb: str = "") -> tuple[str, int] | None:
    """Returns the line and the exit code for an error that users can resolve, or None for a bug.

    The code is 42 if the same command cannot succeed, and 1 if it may: a store, a disk or a server may recover.
    """
    from blip.config import EXIT_CONFIG, ConfigError, one_line
    from blip.storage import MissingKeyError, StoreError, UnusableStoreError

    if isinstance(error, typer.exceptions.TyperException):
        message = getattr(error, "format_message", error.__str__)().replace("Value error, ", "").rstrip(".")
        return one_line(f"{message}. See {' '.join(['blip', verb]).strip()} --help."), EXIT_CONFIG
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return f"{verb} needs {error.name}: pip install 'blip-bootstrap[{extra}]'", EXIT_CONFIG
    if isinstance(error, ConfigError | MissingKeyError | UnusableStoreError):
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


def expected_errors() -> list[tuple[type[Exception], int]]:
    """Returns the classes of errors whose messages state the reason of a failure, a class before its bases.

    Only those of loaded modules, since importing the others would take seconds.
    """
    from blip.config import EXIT_CONFIG

    expected = (
        ("blip.launch.submission", "JobError", 1),
        ("blip.tracking.server", "SettingError", EXIT_CONFIG),
        ("blip.tracking.server", "TrackingError", 1),
        ("blip.training.engine", "NonFiniteError", 1),
        ("blip.workers.local_pool", "WorkerError", 1),
    )
    return [(getattr(sys.modules[module], name), code) for module, name, code in expected if module in sys.modules]


def extra_of(module: str) -> str:
    """Returns the extra of this package that installs a module, or an empty string where none does."""
    from importlib import metadata

    package = module.partition(".")[0]
    lines = metadata.requires("blip-bootstrap") or []
    found = [re.fullmatch(rf"{re.escape(package)}\b.*extra == \W(\w+)\W", line) for line in lines]
    return next((match[1] for match in found if match), "")


def describe_os_error(error: OSError) -> str:
    """Returns the path, the message of the operating system and, if a disk is full, its mount point."""
    from blip.config import one_line

    place = error.filename or tempfile.gettempdir()
    return one_line(f"{os.fsdecode(place)}: {error.strerror}{full_disk(error, place)}")


def full_disk(error: OSError, place: str | bytes | Path) -> str:
    """Returns where the disk is that an error is about, or an empty string if it is not about the disk."""
    from blip.storage.scratch import DISK_ERRORS

    return f" on the disk at {mount_point(Path(os.fsdecode(place)))}" if error.errno in DISK_ERRORS else ""


def mount_point(path: Path) -> Path:
    """Returns the mount point of a path."""
    folder = path.absolute()
    while not os.path.ismount(folder):
        folder = folder.parent
    return folder
