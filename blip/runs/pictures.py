"""Images to caption or to match, wherever they lie: files, folders, and tars."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from blip.capfilt.pairs import map_ahead
from blip.config import ConfigError
from blip.data.images import decode
from blip.shards.discover import discover
from blip.shards.layout import decode_text
from blip.shards.manifest import Manifest
from blip.shards.names import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from blip.shards.reading import open_shard
from blip.shards.sample import BadSample, Rejected, Sample, one_sample
from blip.shards.sources import is_tar
from blip.storage import open_store
from blip.zoo.contract import View


@dataclass
class PictureEntry:
    """An image by its name, which is unique among all sources."""

    name: str
    load: Callable[[], Sample]
    """Reads it. Raises BadSample."""


@dataclass
class Picture:
    """An image as the models take it, with the texts that lie beside it, or the reason why there is none."""

    name: str
    texts: list[str] = field(default_factory=list)
    views: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Sources:
    """Files and tars, in the order in which they were named."""

    files: list[Path]
    tars: list[Manifest]

    @classmethod
    def find(cls, sources: Sequence[str]) -> "Sources":
        """Finds images and tars: a file, a folder of images and their folders, or tars as `blip ingest` takes them.

        Raises ConfigError if a source has neither.
        """
        found = cls([], [])
        for source in sources:
            path = Path(source)
            if path.is_file() and is_image_file(path):
                found.files.append(path)
            elif path.is_dir() and (files := images_below(path)):
                found.files += files
            elif path.is_dir() and not any(map(is_tar, open_store(source).list())):
                raise ConfigError(f"{source}: holds no image ({', '.join(IMAGE_EXTENSIONS)}) and no tar")
            elif path.is_file() and path.suffix != ".tar" and path.suffix != ".json":
                raise ConfigError(f"{source}: is no image ({', '.join(IMAGE_EXTENSIONS)}) and no tar")
            elif "://" not in source and not re.search(r"[{*?[]", source) and not path.exists():
                raise ConfigError(f"{source}: no such file or folder; name images, folders of images, or tars")
            else:
                found.tars.append(discover(source))
        return found

    def __len__(self) -> int:
        return len(self.files) + sum(manifest.samples for manifest in self.tars)

    @property
    def identity(self) -> list[str]:
        """What the results depend on: the files by name, and the tars by digest."""
        return [*map(str, self.files), *(manifest.digest for manifest in self.tars)]

    def groups(self) -> Iterator[list[PictureEntry]]:
        """Yields the images in groups; a tar is open until the next group is asked for."""
        yield [PictureEntry(str(path), lambda path=path: sample_of(path)) for path in self.files]
        for manifest in self.tars:
            for shard in manifest.shards:
                with open_shard(manifest.store, shard, Rejected()) as file:
                    keys = [file.index[row][0] for row in range(len(file))]
                    yield [
                        PictureEntry(f"{shard.name}/{key}", lambda file=file, row=row: file.image_and_texts(row))
                        for row, key in enumerate(keys)
                    ]

    def pictures(self, views: Sequence[View], pool: Executor, ahead: int, skip: int) -> Iterator[Picture]:
        """Yields all but the first `skip` images in order, decoded ahead."""
        for group in self.groups():
            rest = group[skip:]
            skip = max(0, skip - len(group))
            yield from map_ahead(pool, lambda entry: picture(entry, views), rest, ahead)


def images_below(folder: Path) -> list[Path]:
    """Returns the images in a folder and its folders, linked ones too, without hidden ones."""
    return [folder / key for key in open_store(folder).list() if is_image_file(folder / key)]


def is_image_file(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file()


def sample_of(path: Path) -> Sample:
    """Returns the sample of an image's file, with the texts of a file beside it that differs in its ending."""
    beside = [path.with_suffix(f".{ending}") for ending in TEXT_EXTENSIONS]
    texts = next((decode_text(file.read_bytes())[0] for file in beside if file.is_file()), [])
    return Sample(str(path), [path.read_bytes()], texts)


def picture(entry: PictureEntry, views: Sequence[View]) -> Picture:
    """Reads and decodes an image."""
    try:
        with one_sample(entry.name):
            sample = entry.load()
            image: Image.Image = decode(sample.images[0])
            return Picture(entry.name, sample.texts, {view.name: view.make(image) for view in views})
    except BadSample as error:
        return Picture(entry.name, error=str(error))


@contextmanager
def closing(iterator: Iterator[Picture]) -> Iterator[Iterator[Picture]]:
    """Closes the open tar of an iterator that is left early."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close:
            close()
