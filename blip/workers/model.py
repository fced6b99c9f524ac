"""A model where workers find it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from blip.config import Config, ConfigError
from blip.digest import folder_digest, value_digest
from blip.models.weights.files import SUFFIXES, WEIGHTS, tensors_digest
from blip.storage import FolderStore, Store, check_key, open_store, scratch

LEFT_BEHIND = "training_state.safetensors"
"""What a model folder may hold that only its own training needs."""
RECORD = "run.json"
"""The settings of the training, a record that nothing reads."""


class ModelSource(Config):
    """A model folder, known by its digest, and where workers find it."""

    digest: str
    """Of the tensors and of the other files; equal models are not always equal bytes."""
    at: str
    """The URI of the folder."""
    files: tuple[str, ...] = ()
    """What lies there, where it was copied to the store: a listing may be old. Jobs of earlier versions do not say it."""

    @classmethod
    def publish(cls, root: Store, role: str, folder: str | Path | None) -> Self:
        """Returns the folder as it is where workers share the file system, else copies it to the store.

        Raises ConfigError, which names the role, where there is none.
        """
        if not folder or not Path(folder).is_dir():
            raise ConfigError(f"{role} {str(folder or '')!r}: name a model folder")
        digest = model_digest(Path(folder))
        if isinstance(root, FolderStore):
            return cls(digest=digest, at=str(Path(folder).resolve()))
        home = root.join("models", digest)
        there = set(home.list())
        paths = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in (LEFT_BEHIND, RECORD))
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        for key in files.keys() - there:
            home.put_file(key, files[key])
        return cls(digest=digest, at=home.uri, files=tuple(files))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The model as a local folder, for a while. Raises StoreError where a file's name would lead out of it."""
        store = open_store(self.at)
        if isinstance(store, FolderStore):
            yield store.folder
            return
        with scratch("model") as folder:
            for key in self.files or store.list():
                path = folder / check_key(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(key, path)
            yield folder


def model_digest(folder: Path) -> str:
    """Returns what a model folder is known by: the digest of its tensors and of all other files but those of its own training.

    Raises WeightsError where it holds no weights.
    """
    weights = {path.name for path in folder.iterdir() if path.suffix in SUFFIXES}
    return value_digest([tensors_digest(folder), folder_digest(folder, leave_out={*weights, *WEIGHTS, RECORD})])
