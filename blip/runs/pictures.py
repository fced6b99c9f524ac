"""Images to caption or to match, wherever they lie: files, folders, and tars."""

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
from blip.shards.sources import find_objects, is_tar
from blip.storage import Store, hidden, is_web_address, locate, open_store
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


@dataclass(frozen=True)
class ImageFile:
    """An image in a store."""

    name: str
    """Its path or URI."""
    store: Store
    key: str

    def sample(self) -> Sample:
        """Returns the image, with the texts of a file beside it that differs in its ending."""
        stem = self.key.rpartition(".")[0]
        beside = next((key for ending in TEXT_EXTENSIONS if self.store.exists(key := f"{stem}.{ending}")), "")
        texts = decode_text(self.store.get(beside))[0] if beside else []
        return Sample(self.name, [self.store.get(self.key)], texts)


@dataclass
class Sources:
    """Images and tars, in the order in which they were named."""

    files: list[ImageFile]
    tars: list[Manifest]

    @classmethod
    def find(cls, sources: Sequence[str]) -> "Sources":
        """Finds images and tars: a file, a folder of images and their folders, a pattern of these, or tars as
        `blip ingest` takes them; here or in a store.

        Raises ConfigError if a source has neither, StoreError.
        """
        found = cls([], [])
        for source in sources:
            path = Path(source)
            if path.is_file() and has_image_name(source) and not hidden(path.name):
                found.files.append(ImageFile(str(path), open_store(path.parent), path.name))
            elif path.is_dir() and (files := images_below(path)):
                found.files += files
            elif path.is_dir() and not any(map(is_tar, open_store(source).list())):
                raise ConfigError(f"{source}: holds no image ({', '.join(IMAGE_EXTENSIONS)}) and no tar")
            elif path.is_file() and path.suffix != ".tar" and path.suffix != ".json":
                raise ConfigError(f"{source}: is no image ({', '.join(IMAGE_EXTENSIONS)}) and no tar")
            elif not path.exists() and (images := stored_images(source)):
                found.files += images
            elif not path.exists() and "://" not in source and not find_objects(source)[1]:
                raise ConfigError(f"{source}: no such file or folder; name images, folders of images, or tars")
            else:
                found.tars.append(discover(source))
        return found

    def __len__(self) -> int:
        return len(self.files) + sum(manifest.samples for manifest in self.tars)

    @property
    def identity(self) -> list[str]:
        """What the results depend on: the files by name, and the tars by digest."""
        return [*(file.name for file in self.files), *(manifest.digest for manifest in self.tars)]

    def groups(self) -> Iterator[list[PictureEntry]]:
        """Yields the images in groups; a tar is open until the next group is asked for."""
        yield [PictureEntry(file.name, file.sample) for file in self.files]
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


def images_below(folder: Path) -> list[ImageFile]:
    """Returns the images in a folder and its folders, linked ones too, without hidden ones."""
    store = open_store(folder)
    return [ImageFile(str(folder / key), store, key) for key in store.list() if has_image_name(key)]


def stored_images(source: str) -> list[ImageFile]:
    """Returns the images that a URI names, or a pattern; none where tars are named."""
    if is_web_address(source) and has_image_name(source):  # a page of links may not name it
        store, key = locate(source)
        keys = [key] if store.exists(key) else []
    elif is_tar(source) or source.endswith(".json"):
        return []
    else:
        store, stamps = find_objects(source)
        keys = [*stamps]
    return [ImageFile(f"{store.uri}/{key}", store, key) for key in keys if has_image_name(key)]


def has_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


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
