"""Tars of image-text pairs whose samples are copied, since they are compressed or one source of several."""

import bz2
import gzip
import lzma
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from blip.datasets.own.config import Hints
from blip.datasets.own.entries import Entry, Form, split_of
from blip.datasets.own.place import Place, is_image
from blip.digest import file_digest
from blip.logs import log
from blip.shards.discover import UNREADABLE_TAR
from blip.shards.index import Index
from blip.shards.manifest import Shard
from blip.shards.reading import ShardFile, local_copy
from blip.shards.sample import Sample
from blip.shards.verification import ShardError
from blip.storage import StoreError, scratch

COMPRESSED = {".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.bz2": bz2.open, ".tar.xz": lzma.open}
RECORDS = (".parquet", "_stats.json")
"""The endings of img2dataset's records, which say how a tar was downloaded."""


class InTars(Form):
    """Tars, plain or compressed."""

    def __init__(self, place: Place, keys: list[str], hints: Hints):
        self.place, self.keys, self.hints = place, keys, hints
        packed = sum(map(is_compressed, keys))
        records = sum(key.endswith(RECORDS) for key in place.chosen)
        self.words = f"{len(keys):,} tars" + (f", {packed:,} of them compressed" if packed else "")
        images = sum(map(is_image, place.chosen))
        for number, what in ((records, "records of img2dataset"), (images, "images")):
            if number:
                self.words += f"; {number:,} {what} beside them are not read"
        self.settings = {"form": "tars", "keys": hints.layout.keys}

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        broken: list[str] = []
        seen = 0
        for number, key in enumerate(self.keys):
            with ExitStack() as files:
                try:
                    file = files.enter_context(self.open(key, counts))
                except ShardError as error:
                    broken.append(str(error))
                    counts[UNREADABLE_TAR] += 1
                    self.check_lost(broken)
                    continue
                seen += len(file)
                self.total = seen if number + 1 == len(self.keys) else round(seen / (number + 1) * len(self.keys))
                yield [
                    Entry(f"{key}/{file.index[row][0]}", partial(self.load, file, key, row), split_of(key))
                    for row in range(len(file))
                ]

    def check_lost(self, broken: list[str]) -> None:
        if len(broken) > self.hints.lost * len(self.keys):
            raise ShardError(
                f"{len(broken)} of {len(self.keys)} tars cannot be read, more than data.lost={self.hints.lost:g} "
                "allows:" + "".join(f"\n{line}" for line in broken)
            )
        log.warning("left out: %s", broken[-1])

    @contextmanager
    def open(self, key: str, counts: Counter[str]) -> Iterator[ShardFile]:
        """Opens a tar, uncompressed into a temporary folder if need be. Raises ShardError if it cannot be read."""
        uri = f"{self.place.store.uri}/{key}"
        with ExitStack() as files:
            try:
                path = files.enter_context(local_copy(self.place.store, key))
                if is_compressed(key):
                    path = uncompressed(path, key, files.enter_context(scratch("tar")))
                index = Index.scan(path, counts, self.hints.layout.keys)
                shard = Shard(
                    name=key,
                    sha256=file_digest(path),
                    bytes=path.stat().st_size,
                    samples=len(index),
                    layout=self.hints.layout,
                )
                file = files.enter_context(ShardFile(self.place.store, shard, path, verified=True, index=index))
            except StoreError:
                raise
            except Exception as error:  # tarfile and the decompressors raise many kinds for invalid bytes
                raise ShardError(f"shard {uri} cannot be read: {type(error).__name__}: {error}") from error
            yield file

    def load(self, file: ShardFile, key: str, row: int) -> Sample:
        sample = file.image_and_texts(row)
        sample.meta["file"] = f"{key}/{sample.key}"
        sample.shard = ""
        return sample


def is_compressed(key: str) -> bool:
    return key.lower().endswith(tuple(COMPRESSED))


def uncompressed(path: Path, key: str, folder: Path) -> Path:
    """Writes a compressed file's content to a folder, and returns its path."""
    opened = next(opener for ending, opener in COMPRESSED.items() if key.lower().endswith(ending))
    plain = folder / "plain.tar"
    with opened(path, "rb") as file, plain.open("wb") as out:
        shutil.copyfileobj(file, out, 1 << 20)
    return plain
