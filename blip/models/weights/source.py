"""Sources of weights: a path, a store's URI, or a name on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from blip.models.weights.files import INDEX, SUFFIXES, WEIGHTS, WeightsError, first_line, parts_of
from blip.storage import StoreError, locate, open_store, scratch

SIDE_FILE = "training_state.safetensors"
"""Training state stored beside the model's weights: temperature, teacher, queue."""


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """Yields the local file or folder of a source; a temporary copy is removed on exit.

    A source is a path, a store's URI (`s3://bucket/model.pth`, `s3://bucket/folder`), or a hub name
    (`google-bert/bert-base-uncased`), read from the hub's cache if present; with `HF_HUB_OFFLINE=1`, from the cache
    only. Raises WeightsError that lists all attempts, and StoreError, a retryable error, if a store or the hub fails.
    """
    if "://" in source:
        with scratch("weights") as folder:
            yield from_store(source, folder)
    elif Path(source).exists():
        yield Path(source)
    elif (
        re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
        and not source.startswith(".")
        and Path(source).suffix not in SUFFIXES
    ):
        yield from_hub(source)
    else:
        raise WeightsError(
            f"weights {source!r}: no such file or folder, and not a hub name such as google-bert/bert-base-uncased"
        )


def from_store(uri: str, folder: Path) -> Path:
    """Fetches an object, or the weights in a folder of objects, from a store. Raises WeightsError if there are none."""
    if uri.endswith(SUFFIXES):
        store, key = locate(uri)
        store.fetch(key, folder / key)
        return folder / key
    store = open_store(uri)
    keys = [
        key for key in store.list() if "/" not in key and (key in WEIGHTS or key.endswith((".safetensors", ".bin")))
    ]
    for key in keys:
        store.fetch(key, folder / key)
    if not keys:
        raise WeightsError(f"weights {uri!r}: holds no weights, looked for {', '.join(WEIGHTS)}")
    return folder


def from_hub(name: str) -> Path:
    """Fetches the weights of a hub name from the cache, or else from the hub.

    Raises WeightsError if they are not found, StoreError if the hub does not respond.
    """
    tried = ["a file or folder of this name"]
    for cached in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        where = f"the hub's cache {constants.HF_HUB_CACHE}" if cached else "the hub"
        for file in WEIGHTS:
            try:
                path = Path(hf_hub_download(name, file, local_files_only=cached))
                if not file.endswith(INDEX):
                    return path
                for part in parts_of(path):
                    hf_hub_download(name, part, local_files_only=cached)
                return path.parent
            except WeightsError:
                raise
            except Exception as e:  # the hub's client passes on errors of its libraries
                cause = (isinstance(e, LocalEntryNotFoundError) and e.__cause__) or e
                if not cached and can_pass(cause):
                    answer = f"weights {name!r}: the hub does not answer ({first_line(cause)})"
                    raise StoreError(f"{answer}; try again, or give a path or a store's URI") from e
                tried.append(f"{file} in {where}: {type(cause).__name__}")
    tried += ["not the hub itself, since HF_HUB_OFFLINE is set"] if constants.HF_HUB_OFFLINE else []
    raise WeightsError(
        f"weights {name!r} were not found; give a path or a store's URI, or fetch them where there is a network "
        "and bring HF_HOME along "
        f"(tried {'; '.join(tried)})"
    )


def can_pass(error: BaseException) -> bool:
    """Returns whether a request to the hub may succeed on retry; not if the hub denies access or has no such file."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return not isinstance(error, HFValidationError | LocalEntryNotFoundError | OfflineModeIsEnabled | FileMetadataError)
