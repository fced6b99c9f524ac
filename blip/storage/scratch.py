"""Folders of this machine for a while: written to until the disk is full, and swept when those who made them were killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from blip.storage.store import OLD_SECONDS, StoreError

PREFIX = "blip-scratch-"


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """A folder in TMPDIR that lasts as long as the context. Raises StoreError where it cannot be made.

    Folders that killed processes left there go when they are old.
    """
    sweep_scratch()
    with writing(Path(tempfile.gettempdir()), "free some space, or let TMPDIR name another place"):
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what}-"))
    try:
        with held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(age: float = OLD_SECONDS) -> None:
    """Removes this user's scratch folders that are older than `age` seconds and that no living process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            told = folder.lstat()
            if told.st_uid == os.getuid() and time.time() - told.st_mtime > age:
                with held(folder):
                    shutil.rmtree(folder)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the end of the process releases, too. Raises BlockingIOError where another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def writing(place: Path, way_out: str = "free some space, or choose another place") -> Iterator[None]:
    """Turns what the system says of a place that is full, read-only or limited into a StoreError of one line that names it."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, SafetensorError) as e:
        raise StoreError(f"{place} cannot be written to ({free_space(place)}): {first_line(e)}; {way_out}") from e


def free_space(place: Path) -> str:
    """What is free on the disk of a place, or of the nearest folder above it that is there."""
    for folder in (place, *place.absolute().parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
    return "it is not there"


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
