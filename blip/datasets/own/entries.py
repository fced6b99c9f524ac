"""Entries: images with texts that were found, but not read yet."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from blip.datasets.own.place import Place
from blip.shards.names import IMAGE_EXTENSIONS
from blip.shards.sample import Sample
from blip.shards.sources import Stamps

Split = Literal["", "train", "val", "test"]
"""The split of the data's own that an entry is in; empty if it is in none."""

NO_TEXT = "no text"
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Usual names of splits."""
SPLIT_WORD = re.compile(rf"(?:^|[/_.\-])({'|'.join(SPLIT_WORDS)})\d*(?=[/_.\-]|$)", re.IGNORECASE)
SIGNATURES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*", "tif"),
    (b"MM", "tif"),
)
"""The first bytes of images, and the extension of each kind."""


@dataclass(frozen=True)
class Entry:
    """An image with its texts, which `load` reads."""

    name: str
    """Its path, or its tar and key, or its table and row."""
    load: Callable[[], Sample]
    """Returns the sample, with any key. Raises BadSample."""
    split: Split = ""


class Entries(ABC):
    """Entries in an order that is always the same."""

    total: int = 0
    """The number of entries; an estimate, which grows better, where only reading tells; 0 if nothing is known."""

    @abstractmethod
    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        """Yields the entries in groups; a group can be loaded until the next one is asked for.

        What belongs to no entry is counted by reason. Raises ConfigError if the files are not of this form, ShardError
        if too many tars are broken.
        """


class Form(Entries):
    """One place of images with texts, of a known form."""

    place: Place
    words: str
    """What was found, in plain words."""
    settings: dict[str, str]
    """The settings, by name, under which the place is read in this way."""

    def stamps(self) -> Stamps:
        """Returns what is read, with the entries of the store's listing that tell when it changes."""
        return self.place.chosen


def split_of(path: str) -> Split:
    """Returns the split that a path names, `coco/train2017/1.jpg` or `data/test-00000-of-00001.parquet`."""
    found = SPLIT_WORD.findall(path)
    return SPLIT_WORDS[found[0].lower()] if found else ""


def extension_of_image(data: bytes, name: str = "") -> str:
    """Returns the extension of an image's name without a dot, or else that of its first bytes' kind."""
    given = name.rpartition(".")[2].lower()
    if "." in name and given in IMAGE_EXTENSIONS:
        return given
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((extension for begin, extension in SIGNATURES if data.startswith(begin)), "jpg")
