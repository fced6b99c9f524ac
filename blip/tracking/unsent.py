"""Files of records that MLflow did not accept before the end of a run."""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

UNSENT = Path("runs/unsent")


def save_records(values: Mapping[str, Any]) -> Path:
    """Writes the records of a run to a new file, in UNSENT or a folder for temporary files, and returns its path.

    Raises OSError if neither takes the file.
    """
    text = json.dumps(values, indent=1)
    private = Path(tempfile.gettempdir(), f"blip-unsent-{os.getuid()}")
    for folder in (UNSENT, private):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return write_whole(folder, text)
    return write_whole(Path(tempfile.mkdtemp(prefix="blip-unsent-")), text)


def write_whole(folder: Path, text: str) -> Path:
    """Writes a new file, or none if the disk is full. Raises OSError."""
    path = folder.resolve() / f"{uuid.uuid4().hex[:12]}.json"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path
