"""Outputs of a step on this machine, which appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip.storage.scratch import writing

INCOMPLETE = ".incomplete"
"""The folder, inside an output folder, of files that are not complete yet."""


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes a file whole or not at all. Raises StoreError, which names the path, if the disk is full or read-only.

    A path that is no regular file, such as `/dev/stdout`, is written to directly.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()  # a link stays one
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Yields an empty folder, whose files replace those of `folder` at the end of the context, or after an error none.

    Only write files in the context, since its errors of the operating system become a StoreError that names `folder`.
    """
    folder = Path(folder)
    incomplete = folder / INCOMPLETE
    with writing(folder):
        shutil.rmtree(incomplete, ignore_errors=True)  # of a killed process
        incomplete.mkdir(parents=True)
        try:
            yield incomplete
            files = [path.relative_to(incomplete) for path in sorted(incomplete.rglob("*")) if path.is_file()]
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
            for file in files:
                os.replace(incomplete / file, folder / file)
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
