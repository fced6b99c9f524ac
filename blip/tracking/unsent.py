"""Files of records that MLflow did not accept before the end of a run."""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNSENT = Path("runs/unsent")


def save_records(values: Mapping[str, Any]) -> Path:
    """Writes the records of a run to a new file and returns its path."""
    path = unsent_folder() / f"{uuid.uuid4().hex[:12]}.json"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path.resolve()


def unsent_folder() -> Path:
    """Returns a writable folder: UNSENT, or one for temporary files."""
    private = Path(tempfile.gettempdir(), f"blip-unsent-{os.getuid()}")
    for folder in (UNSENT, private):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="blip-unsent-"))
