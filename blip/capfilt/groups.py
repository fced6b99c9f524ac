"""Images and texts that come more than once in a whole data set, found on disk in bounded memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MEMORY = "1GB"
"""What the database holds in memory; what is more goes to the system's temporary folder."""
BATCH = 1 << 19
"""Rows inserted at a time."""

DATABASE_SCHEMA = """
CREATE TABLE images (image BIGINT, digest UHUGEINT, phash UBIGINT, kept BOOLEAN);
CREATE TABLE texts (row_number BIGINT, digest UHUGEINT);
"""
INSERT = {
    "images": "INSERT INTO images SELECT image, md5_number(sha256), phash, kept FROM batch",
    "texts": "INSERT INTO texts SELECT row_number, md5_number(text) FROM batch",
}
"""Numbers of 128 bits stand for digests and texts: they are grouped faster than strings."""
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
    """A data set's decoded images and web texts, table after table; a context that removes its files at the end.

    DuckDB does the grouping: of the engines measured (`benchmarks/selection.py`) it is the one whose memory does not grow with the data.
    """

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="blip-"))
            self.database = stack.enter_context(
                duckdb.connect(Path(folder, "groups.db"), config={"memory_limit": MEMORY})
            )
            self.database.execute("SET preserve_insertion_order = false")
            self.database.execute("SET enable_progress_bar = false")
            self.database.execute(DATABASE_SCHEMA)
            self.waiting: dict[str, list[pa.Table]] = {"images": [], "texts": []}
            self.cleanup = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self.cleanup.close()

    def add_images(
        self, numbers: NDArray[np.int64], sha256: pa.Array, phash: NDArray[np.uint64], kept: NDArray[np.bool_]
    ) -> None:
        """Takes in images by their number in the data set, with digests and hashes, and whether a text of theirs is kept so far."""
        self.add("images", {"image": numbers, "sha256": sha256, "phash": phash, "kept": kept})

    def add_texts(self, rows: NDArray[np.int64], texts: pa.Array) -> None:
        """Takes in texts by the number of their row in the data set."""
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
        """The numbers of images whose bytes are those of another one: of equal ones the first with a kept text stays, or else the first."""
        self.insert("images")
        return self.columns(LATER_COPIES)["image"]

    def hashes(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """All images' numbers and perceptual hashes, those with a kept text first, else in their order."""
        self.insert("images")
        found = self.columns("SELECT image, phash FROM images ORDER BY kept DESC, image")
        return found["image"], found["phash"]

    def repeated(self, more_than: int) -> NDArray[np.int64]:
        """The row numbers of texts that come more often than this."""
        self.insert("texts")
        return self.columns(REPEATED, more_than)["row_number"]

    def columns(self, query: str, *given: int) -> dict[str, NDArray[Any]]:
        found = self.database.execute(query, given).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items()}
