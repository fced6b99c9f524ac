"""Temporary folders on this machine that killed processes do not leave behind for good, and errors of full disks."""

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from blip.storage.store import OLD_SECONDS, StoreError

PREFIX = "blip-scratch-"
ROOM_FOR_SCRATCH = "free some space, or let TMPDIR name another place"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Error numbers of a full disk, an exceeded quota, a file at its maximum size and a read-only disk."""
DISK_MESSAGE = re.compile("|".join(re.escape(os.strerror(number)) for number in sorted(DISK_ERRORS)))
"""The message of such an error in an exception of a library that is written in another language."""


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """Yields a folder in TMPDIR that is removed at the end of the context.

    Raises StoreError if it cannot be made, and for errors of a full disk in the context. Also removes old folders that
    killed processes left there.
    """
    sweep_scratch()
    with writing(Path(tempfile.gettempdir()), ROOM_FOR_SCRATCH):
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what}-"))
    try:
        with locked(folder):
            yield folder
    except Exception as e:
        if isinstance(e, StoreError) or not is_disk_error(e):
            raise
        raise StoreError(unwritable(folder, e, ROOM_FOR_SCRATCH)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(age: float = OLD_SECONDS) -> None:
    """Removes this user's scratch folders that are older than `age` seconds and not locked by a living process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > age:
                with locked(folder):
                    shutil.rmtree(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which also ends with the process. Raises BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def writing(place: Path, way_out: str = "free some space, or choose another place") -> Iterator[None]:
    """Turns errors of the operating system (disk full, read-only) into a one-line StoreError that names `place`."""
    try:
        yield
    except StoreError:
        raise
    except Exception as e:
        if not isinstance(e, OSError | SafetensorError) and not is_disk_error(e):
            raise
        raise StoreError(unwritable(place, e, way_out)) from e


def is_disk_error(error: BaseException) -> bool:
    """Returns whether a disk is the cause of an error, which may come from a library in another language."""
    if type(error).__module__.startswith("blip."):  # it names its place itself
        return False
    return (isinstance(error, OSError) and error.errno in DISK_ERRORS) or bool(DISK_MESSAGE.search(str(error)))


def unwritable(place: Path, error: BaseException, way_out: str) -> str:
    """Returns the line of an error for a place that cannot be written to."""
    return f"{place} cannot be written to ({free_space(place)}): {summary_of(error)}; {way_out}"


def free_space(place: Path) -> str:
    """Returns a phrase on the free space at `place`, or at its nearest parent folder that exists."""
    for folder in (place, *place.absolute().parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
    return "it is not there"


def summary_of(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has none."""
    if isinstance(error, shutil.Error):  # of a copied tree: its message is the list of all errors
        return error.args[0][0][2]
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
