"""Rows of results in a file: JSON lines, CSV or Parquet; what was written before an interruption is kept."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blip.config import ConfigError
from blip.digest import value_digest
from blip.logs import log

Row = dict[str, Any]
TABLE_ENDINGS = (".jsonl", ".csv", ".parquet")


class RowsFile:
    """A file of rows, which appears when all are there.

    Until then rows stand in a file of JSON lines beside it, after a line that tells what they are of. A later call for
    the same goes on behind its last whole line.
    """

    def __init__(self, path: Path, columns: Sequence[str], identity: Any):
        """Raises ConfigError if the file's ending names none of TABLE_ENDINGS."""
        check_format(path)
        self.path, self.columns = path, list(columns)
        self.partial = path.with_name(f".{path.name}.partial")
        self.head = json.dumps({"of": value_digest([self.columns, identity])})
        self.done = self.resume()

    def resume(self) -> int:
        """Returns the number of images whose rows are written, and cuts off what is not whole."""
        lines = self.partial.read_bytes().splitlines(keepends=True) if self.partial.is_file() else []
        if not lines or lines[0].decode(errors="replace").strip() != self.head:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.write_text(self.head + "\n", encoding="utf-8")
            return 0
        whole = [line for line in lines[1:] if line.endswith(b"\n")]
        size = len(lines[0]) + sum(map(len, whole))
        os.truncate(self.partial, size)
        if whole:
            log.info("%s: going on behind %d images that are done", self.path, len(whole))
        return len(whole)

    def append(self, of_images: Sequence[list[Row]]) -> None:
        """Adds the rows of images, in order; returns when they are on the disk."""
        with self.partial.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(rows, ensure_ascii=False) + "\n" for rows in of_images)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[Row]:
        """Yields all rows so far."""
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield from json.loads(line)

    def finish(self) -> None:
        """Writes the file, and removes the one beside it."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        match self.path.suffix:
            case ".jsonl":
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
            case ".csv":
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, self.columns)
                    writer.writeheader()
                    writer.writerows(self.rows())
            case _:
                self.write_parquet(temporary)
        temporary.replace(self.path)
        self.partial.unlink()

    def write_parquet(self, path: Path) -> None:
        import pyarrow as pa  # needed for this format alone
        import pyarrow.parquet as pq

        kinds = {
            "number": pa.int32(),
            "match": pa.float32(),
            "similarity": pa.float32(),
            "log_probability": pa.float32(),
        }
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in self.columns])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            rows: list[Row] = []
            for row in self.rows():
                rows.append(row)
                if len(rows) == 10_000:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))


def check_format(path: str | Path) -> None:
    """Raises ConfigError if a file's ending names none of TABLE_ENDINGS."""
    if Path(path).suffix not in TABLE_ENDINGS:
        raise ConfigError(f"--out {path}: must end in {', '.join(TABLE_ENDINGS)}")
