"""Shard indexes: the offsets of each sample's members, so that any sample is one read."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from blip.shards.names import KeyRule, Members, group_members
from blip.shards.tar import read_members

IndexEntry = tuple[str, Members] | tuple[str, Members, list[str]]
"""A sample's key and members, and its texts if a selection chose among them."""


class Index:
    """The samples of a shard in order, each with the offsets of its members.

    Stored as one line of JSON a sample (`["key", {"png": [offset, size]}]`), with the texts as a third element if a
    selection chose among them. Lines are parsed on access, since a loader has the indexes of hundreds of shards in
    memory.
    """

    def __init__(self, lines: bytes):
        self.lines = lines
        self.ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))

    @classmethod
    def of(cls, samples: Iterable[IndexEntry]) -> Self:
        return cls("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in samples).encode())

    @classmethod
    def scan(cls, path: Path, rejected: Counter[str], keys: KeyRule = "auto") -> Self:
        """Reads the headers of a tar; members that belong to no sample with an image are counted by reason.

        Raises tarfile.TarError if the file is not a tar or is cut short.
        """
        return cls.of(group_members(read_members(path, rejected), keys, rejected).items())

    @property
    def digest(self) -> str:
        """SHA-256 of the lines."""
        return hashlib.sha256(self.lines).hexdigest()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[str, Members, list[str] | None]:
        """Returns the key, the members, and the chosen texts, None if there was no selection."""
        start = self.ends[row - 1] + 1 if row else 0
        key, members, *texts = json.loads(self.lines[start : self.ends[row]])
        return key, members, texts[0] if texts else None
