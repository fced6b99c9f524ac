"""Loads parts of a model from a folder that transformers wrote, with errors in one line."""

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from blip.config import ConfigError, one_line

disable_progress_bar()

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of which a folder has at least one if it has a tokenizer, and settings of its images."""


def image_processor_of(folder: Path) -> Any:
    """Returns the image processor of a folder. Raises ConfigError if it has none."""
    check_files(folder, PROCESSORS, "the settings of its images")
    return from_folder(AutoImageProcessor, folder)


def tokenizer_of(folder: Path) -> Any:
    """Returns the tokenizer of a folder. Raises ConfigError if it has none."""
    check_files(folder, TOKENIZERS, "its tokenizer")  # for some models transformers would make up an empty one
    return from_folder(AutoTokenizer, folder)


def check_files(folder: Path, names: tuple[str, ...], what: str) -> None:
    """Raises ConfigError if none of the files that tell something is in a folder."""
    if not any((folder / name).is_file() for name in names):
        raise ConfigError(
            f"model {folder}: lacks {what}, none of {', '.join(names)} is there; copy it from where the model came from"
        )


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
