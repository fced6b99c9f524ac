"""Loads parts of a model from a folder that transformers wrote, with errors in one line."""

from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from blip.config import ConfigError, one_line

disable_progress_bar()


def from_folder(kind: Any, folder: Path, **options: Any) -> Any:
    """Returns what a class of transformers reads from a local folder. Runs no code of the folder.

    Raises ConfigError, which names the folder, for whatever keeps transformers from it.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        reason = one_line(f"{type(error).__name__}: {error}")[:300]
        raise ConfigError(
            f"{folder}: {kind.__name__} of transformers does not read it ({reason}); models that bring their own code "
            "are not loaded"
        ) from None
