"""Places: the files that a source names, and what lies around them."""

import os
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from blip.shards.names import IMAGE_EXTENSIONS
from blip.shards.sample import BadSample
from blip.shards.sources import Stamps, find_source, is_any, is_tar
from blip.storage import FolderStore, MissingKeyError, Store, file_stamp, is_web_address, open_store

MISSING = "image file is missing"
OUTSIDE = "image path leads out of the folder"
AMBIGUOUS = "several image files have the name"
ADDRESS = "image is a web address, which is not fetched"
ANNOTATION_FOLDERS = ("annotations", "annotation")
"""Folders beside which images lie."""


@dataclass(frozen=True)
class Place:
    """The files of a source."""

    source: str
    store: Store
    chosen: Stamps
    """The keys of the files that the source names, with their entries in the store's listing."""
    whole: bool
    """Whether these are all files of the store."""

    @classmethod
    def find(cls, source: str) -> "Place":
        """Raises ConfigError if nothing is there."""
        store, stamps = find_source(source, is_tar if is_tar(source) else is_any)
        whole = store.uri == open_store(source).uri
        folder, _, name = store.uri.rpartition("/")
        if whole or name not in ANNOTATION_FOLDERS:
            return cls(source, store, stamps, whole)
        return cls(source, open_store(folder), {f"{name}/{key}": stamp for key, stamp in stamps.items()}, False)

    @cached_property
    def around(self) -> Stamps:
        """All files of the store, as `chosen`; on a web server only those that the source names."""
        if self.whole or is_web_address(self.store.uri):
            return self.chosen
        return self.store.stamps()

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """Keys of images by the last part of their path, with and without its extension, in lower case."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key in filter(is_image, self.around):
            name = key.rpartition("/")[2].lower()
            for known in (name, name.rpartition(".")[0]):
                found[known].append(key)
        return found

    def image(self, name: str, folder: str) -> str:
        """Returns the key of an image by the path that a table in `folder` has of it. Raises BadSample.

        A path is relative to the table's folder, or to the place; or it is the end of the path of one image alone, in
        any case and with or without its extension. One that leads out of a folder of this machine stays as it is.
        """
        path = name.strip().replace("\\", "/").removeprefix(f"{self.store.uri}/")
        if "://" in path:
            raise BadSample(ADDRESS)
        direct = [posixpath.normpath(posixpath.join(folder, path)), posixpath.normpath(path)]
        if path.startswith("/") or all(key.startswith("..") for key in direct):
            return self.outside(posixpath.normpath(posixpath.join(self.store.uri, folder, path)))
        for key in direct:
            if key in self.around:
                return key
        end = f"/{direct[1].lower()}"
        near = [key for key in self.images_by_name.get(end.rpartition("/")[2], ()) if is_end(end, f"/{key.lower()}")]
        if len(near) > 1:
            raise BadSample(AMBIGUOUS)
        if not near:
            raise BadSample(MISSING)
        return near[0]

    def outside(self, path: str) -> str:
        """Returns a file's path on this machine. Raises BadSample if the place is in a store, or nothing is there."""
        if not isinstance(self.store, FolderStore):
            raise BadSample(OUTSIDE)
        if not os.path.isfile(path):
            raise BadSample(MISSING)
        return path

    def image_stamp(self, name: str, folder: str) -> Stamps:
        """Returns the entry of an image, as `image` finds it, in the listing. Raises BadSample."""
        key = self.image(name, folder)
        return {key: self.around[key] if key in self.around else file_stamp(key)}

    def read_image(self, name: str, folder: str) -> tuple[bytes, str]:
        """Returns an image's bytes, and its key as `image` finds it. Raises BadSample."""
        key = self.image(name, folder)
        try:
            return (self.store.get(key) if key in self.around else Path(key).read_bytes()), key
        except (MissingKeyError, FileNotFoundError):  # the listing is older
            raise BadSample(MISSING) from None


def is_end(end: str, key: str) -> bool:
    return key.endswith(end) or key.rpartition(".")[0].endswith(end)


def is_image(key: str) -> bool:
    """Returns whether a file has the extension of an image."""
    return key.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
