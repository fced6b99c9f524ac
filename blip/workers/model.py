"""Model folders as workers get them: through a shared file system or the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from blip.config import Config, ConfigError
from blip.digest import folder_digest, value_digest
from blip.models.weights.content import SIDE_FILE
from blip.models.weights.files import SUFFIXES, WEIGHTS, tensors_digest
from blip.storage import FolderStore, Store, check_key, open_store, scratch

RUN_RECORD = "run.json"
"""A file with the settings of the training, for the record; it is never read."""


class ModelSource(Config):
    """A model folder, identified by its digest, and its location."""

    digest: str
    """Of the tensors and of the other files; equal models may differ in bytes."""
    at: str
    """The URI of the folder."""
    files: tuple[str, ...] = ()
    """The files of a copy in the store, as listings may be stale. Empty in jobs of earlier versions."""

    @classmethod
    def publish(cls, root: Store, role: str, folder: str | Path | None) -> Self:
        """Copies the folder to the store, unless the store is a folder and workers share the file system.

        Raises ConfigError, which names the role, if there is no such folder.
        """
        if not folder or not Path(folder).is_dir():
            raise ConfigError(f"{role} {str(folder or '')!r}: name a model folder")
        digest = model_digest(Path(folder))
        if isinstance(root, FolderStore):
            return cls(digest=digest, at=str(Path(folder).resolve()))
        home = root.join("models", digest)
        there = set(home.list())
        paths = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in (SIDE_FILE, RUN_RECORD))
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        for key in files.keys() - there:
            home.put_file(key, files[key])
        return cls(digest=digest, at=home.uri, files=tuple(files))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yields the model as a local folder. Raises StoreError if the name of a file leads outside of it."""
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
    """Returns the digest of a model folder's tensors and of its other files, without those of its training.

    Others' models whose weights have another name or lie in several files may be large and are taken by their bytes.
    Raises WeightsError if the folder holds no weights.
    """
    weights = {path.name for path in folder.iterdir() if path.suffix in SUFFIXES}
    if weights and not (folder / WEIGHTS[0]).is_file():
        return folder_digest(folder, leave_out={RUN_RECORD})
    others = folder_digest(folder, leave_out={*weights, *WEIGHTS, RUN_RECORD})
    return value_digest([tensors_digest(folder), others])
