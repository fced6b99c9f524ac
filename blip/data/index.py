"""Where the members of each sample lie in a shard, so that any sample is one read."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

KEY = re.compile(r"(?:.*/)?[^/.]+")
MEMBER = re.compile(rf"({KEY.pattern})\.([^/]+)")
"""A member's name: the sample's key, then everything after its first dot as the extension."""

IMAGE = re.compile(r"(?:\d+\.)?(?:png|jpe?g|webp)")
"""An extension that holds an image: `png`, or `0.png`, `1.png` of several."""

Members = dict[str, tuple[int, int]]
"""Extension to (offset, size) in bytes."""

Entry = tuple[str, Members] | tuple[str, Members, list[str]]
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
    def of(cls, samples: Iterable[Entry]) -> Self:
        return cls("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in samples).encode())

    @classmethod
    def scan(cls, path: Path, rejected: Counter[str]) -> Self:
        """Reads the headers of a tar that somebody else may have written; what is no sample with an image is counted by reason.

        Raises tarfile.TarError where the file is no tar or ends early.
        """
        samples: dict[str, Members] = {}
        current = ""
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                match = MEMBER.fullmatch(member.name)
                if match is None:
                    rejected["member without key and extension"] += 1
                    continue
                key, extension = match.group(1), match.group(2).lower()
                if key != current and key in samples:
                    rejected["key twice in a shard"] += 1
                    continue
                current = key
                samples.setdefault(key, {})[extension] = member.offset_data, member.size
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep them all
            # tarfile takes the end of the file for the end of the archive; a tar cut between two members would pass.
            with path.open("rb") as f:
                f.seek(tar.offset)
                if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end-of-archive marker: the file is cut short")
        complete = {key: members for key, members in samples.items() if any(map(IMAGE.fullmatch, members))}
        if len(complete) < len(samples):
            rejected["no image"] += len(samples) - len(complete)
        return cls.of(complete.items())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[str, Members, list[str] | None]:
        """Key, members, and the texts chosen, if any were."""
        start = self.ends[row - 1] + 1 if row else 0
        key, members, *texts = json.loads(self.lines[start : self.ends[row]])
        return key, members, texts[0] if texts else None
