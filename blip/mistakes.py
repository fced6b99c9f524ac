"""A person's mistakes on the command line: found before the work begins, and said in one line."""

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from blip.config import EXIT_CONFIG, ConfigError, one_line, presets
from blip.storage import MissingKeyError, StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the operating system says of a disk, a share of it, or a file that can hold no more."""

LONGEST_NAME = 255
"""Bytes of a file's name at most, on the file systems that are in use."""


def told(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code for an error that people can do something about; None for one that needs its traceback.

    42 where the same command cannot succeed, 1 where it may: a store, a disk or a server can be better the next time.
    """
    if isinstance(error, typer.exceptions.TyperException):
        said = getattr(error, "format_message", error.__str__)()
        return one_line(f"{said} See --help."), EXIT_CONFIG
    if isinstance(error, ConfigError | MissingKeyError):
        return str(error), EXIT_CONFIG
    if isinstance(error, StoreError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno is not None:
        return of_system(error), 1
    if "No space left on device" in str(error):  # as safetensors says it, which knows no path
        return (
            f"a disk is full: {one_line(str(error))}; this process writes temporary files to {tempfile.gettempdir()}",
            1,
        )
    return (one_line(str(error)), 1) if isinstance(error, failures()) else None


FAILURES = {
    "blip.launch.submission": "JobError",
    "blip.tracking.server": "TrackingError",
    "blip.training.engine": "NonFiniteError",
    "blip.workers.local_pool": "WorkerError",
}
"""Errors of work that failed for a reason that their messages tell, by module."""


def failures() -> tuple[type[Exception], ...]:
    """Returns those of them whose modules are loaded: to load one takes seconds, and it raises nothing before."""
    return tuple(getattr(sys.modules[module], error) for module, error in FAILURES.items() if module in sys.modules)


def of_system(error: OSError) -> str:
    """What the operating system says of a file, and of which disk if it is full."""
    place = error.filename or tempfile.gettempdir()
    disk = f" on the disk at {mount(Path(os.fsdecode(place)))}" if error.errno in FULL else ""
    return one_line(f"{os.fsdecode(place)}: {error.strerror}{disk}")


def mount(path: Path) -> Path:
    """Where the disk is mounted that a path lies on."""
    at = path.absolute()
    while not os.path.ismount(at):
        at = at.parent
    return at


def a_preset(value: str) -> str:
    """The preset that was named. Raises ConfigError where none was."""
    if not value:
        raise ConfigError(
            f"--preset is missing: one of {', '.join(presets())}, or a .yaml file that changes one of them"
        )
    return value


def a_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Raises ConfigError where an option names a folder that is not there."""
    if value is not None:
        with_reason(param, value, lambda: os.listdir(value))
    return value


def a_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Raises ConfigError where an option names a file that is not there."""
    if value is not None:
        with_reason(param, value, lambda: value.open("rb").close())
    return value


def a_new_folder(param: typer.CallbackParam, value: Any) -> Any:
    """Raises ConfigError where a folder, which need not be there yet, cannot be written; what has a scheme is no folder."""
    if value is not None and "://" not in str(value):
        with_reason(param, value, lambda: try_to_write(Path(value)))
    return value


def a_new_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Raises ConfigError where a file, which need not be there yet, cannot be written."""
    if value is not None and value.is_dir():
        raise ConfigError(f"{name(param)} {value}: is a folder, not a file")
    if value is not None:
        with_reason(param, value, lambda: try_to_write(value.parent))
    return value


def try_to_write(folder: Path) -> None:
    """Writes some bytes to a folder, or to the nearest one above it that is there, and leaves nothing behind. Raises OSError."""
    there = folder.absolute()
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in there.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    while not os.path.lexists(there):
        there = there.parent
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def with_reason(param: typer.CallbackParam, value: Any, look: Any) -> None:
    """Looks at what an option names. Raises ConfigError with what the operating system says of it."""
    try:
        look()
    except OSError as error:
        disk = f" on the disk at {mount(Path(value))}" if error.errno in FULL | {errno.EROFS} else ""
        raise ConfigError(one_line(f"{name(param)} {value}: {error.strerror}{disk}")) from None


def name(param: typer.CallbackParam) -> str:
    return max(param.opts, key=len)
