"""Finds exact duplicates of images and texts in a whole data set, on disk in bounded memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.storage import scratch

MEMORY = "1GB"
"""The database's memory limit; the rest spills to the system's temporary folder."""
BATCH = 1 << 19
"""Rows per insert."""

DATABASE_SCHEMA = """
CREATE TABLE images (image BIGINT, digest UHUGEINT, phash UBIGINT, kept BOOLEAN);
CREATE TABLE texts (row_number BIGINT, digest UHUGEINT);
"""
INSERT = {
    "images": "INSERT INTO images SELECT image, md5_number(sha256), phash, kept FROM batch",
    "texts": "INSERT INTO texts SELECT row_number, md5_number(text) FROM batch",
}
"""Digests and texts are stored as 128-bit MD5 numbers, which group faster than strings."""
LATER_COPIES = """
WITH ranked AS (SELECT image, digest, image + CASE WHEN kept THEN 0 ELSE 1::BIGINT << 61 END AS place FROM images),
     copied AS (SELECT digest, min(place) AS first FROM ranked GROUP BY digest HAVING count(*) > 1)
SELECT image FROM ranked JOIN copied USING (digest) WHERE place <> first
"""
REPEATED = """
SELECT row_number FROM texts
SEMI JOIN (SELECT digest FROM texts GROUP BY digest HAVING count(*) > ?) USING (digest)
"""


class Groups:
    """A temporary database of a data set's decoded images and web texts; a context manager that removes its files.

    DuckDB is the only engine measured (`benchmarks/selection.py`) whose memory does not grow with the data.
    """

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch("groups"))
            self.database = stack.enter_context(
                duckdb.connect(Path(folder, "groups.db"), config={"memory_limit": MEMORY})
            )
            self.database.execute("SET preserve_insertion_order = false")
            self.database.execute("SET enable_progress_bar = false")
            self.database.execute(DATABASE_SCHEMA)
            self.waiting: dict[str, list[pa.Table]] = {"images": [], "texts": []}
            self.cleanup = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.cleanup.__exit__(*error)

    def add_images(
        self, numbers: NDArray[np.int64], sha256: pa.Array, phash: NDArray[np.uint64], kept: NDArray[np.bool_]
    ) -> None:
        """Adds images: numbers in the data set, SHA-256, perceptual hashes, and whether any of their texts is kept."""
        self.add("images", {"image": numbers, "sha256": sha256, "phash": phash, "kept": kept})

    def add_texts(self, rows: NDArray[np.int64], texts: pa.Array) -> None:
        """Adds texts with their row numbers in the data set."""
        self.add("texts", {"row_number": rows, "text": texts})

    def add(self, name: str, columns: Mapping[str, Any]) -> None:
        waiting = self.waiting[name]
        waiting.append(pa.table(columns))
        if sum(map(len, waiting)) >= BATCH:
            self.insert(name)

    def insert(self, name: str) -> None:
        if not self.waiting[name]:
            return
        self.database.register("batch", pa.concat_tables(self.waiting[name]))
        self.database.execute(INSERT[name])
        self.database.unregister("batch")
        self.waiting[name] = []

    def later_copies(self) -> NDArray[np.int64]:
        """Returns the numbers of duplicate images. The first with a kept text, or else the first, stays."""
        self.insert("images")
        return self.columns(LATER_COPIES)["image"]

    def hashes(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Returns all image numbers and perceptual hashes, images with a kept text first, otherwise in order."""
        self.insert("images")
        found = self.columns("SELECT image, phash FROM images ORDER BY kept DESC, image")
        return found["image"], found["phash"]

    def repeated(self, more_than: int) -> NDArray[np.int64]:
        """Returns the row numbers of texts that occur more than `more_than` times."""
        self.insert("texts")
        return self.columns(REPEATED, more_than)["row_number"]

    def columns(self, query: str, *given: int) -> dict[str, NDArray[Any]]:
        found = self.database.execute(query, given).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items()}
