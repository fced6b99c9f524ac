"""Where the members of each sample lie in a shard, so that any sample is one read."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from blip.data.names import KeyRule, Members, group_members
from blip.data.tar import read_members

IndexEntry = tuple[str, Members] | tuple[str, Members, list[str]]
"""A sample's key and members; and its texts, where the index knows better than the members."""


class Index:
    """The samples of a shard in their order, each with the place of its members.

    Kept as it is stored, one line of JSON a sample (`["key", {"png": [offset, size]}]`), and read a line at a time: a loader holds the
    indexes of hundreds of shards at once. A third element has the sample's texts where a selection chose among them.
    """

    def __init__(self, lines: bytes):
        self.lines = lines
        self.ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))

    @classmethod
    def of(cls, samples: Iterable[IndexEntry]) -> Self:
        return cls("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in samples).encode())

    @classmethod
    def scan(cls, path: Path, rejected: Counter[str], keys: KeyRule = "auto") -> Self:
        """Reads the headers of a tar that somebody else may have written; what is no sample with an image is counted by reason.

        Raises tarfile.TarError where the file is no tar or ends early.
        """
        return cls.of(group_members(read_members(path, rejected), keys, rejected).items())

    @property
    def digest(self) -> str:
        """SHA-256 of the lines."""
        return hashlib.sha256(self.lines).hexdigest()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[str, Members, list[str] | None]:
        """Key, members, and the texts chosen, if any were."""
        start = self.ends[row - 1] + 1 if row else 0
        key, members, *texts = json.loads(self.lines[start : self.ends[row]])
        return key, members, texts[0] if texts else None
