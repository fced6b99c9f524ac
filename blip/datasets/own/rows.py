"""Rows of tables: CSV, TSV, JSON lines, Parquet, and the Arrow files of Hugging Face's library."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from blip.config import ConfigError
from blip.shards.names import IMAGE_EXTENSIONS
from blip.shards.reading import local_copy
from blip.storage import Store, StoreError

TEXT_TABLES = (".csv", ".tsv", ".token", ".jsonl", ".ndjson")
TABLES = (*TEXT_TABLES, ".parquet", ".arrow")
"""Endings of tables."""
DELIMITERS = ",\t|;"
MAX_FIELD = 16 << 20
"""Characters of a field."""
BATCH = 64
"""Rows of a table with images that are in memory at once."""
BAD_ROW = "row of a table cannot be read"
NAMELESS = ("image", "text")
"""The columns of a table without a head."""
WITH_NUMBER = re.compile(r"#\d+$")
"""Flickr30k's number of a text behind an image's name."""

TableRow = dict[str, Any]


def read_rows(store: Store, key: str, counts: Counter[str], columns: Sequence[str] | None = None) -> Iterator[TableRow]:
    """Yields the rows of a table; broken ones are counted.

    `columns` spares reading others, where the format allows it. Raises ConfigError if the table cannot be read.
    """
    ending = ending_of(key)
    try:
        with local_copy(store, key) as path:
            match ending:
                case ".jsonl" | ".ndjson":
                    yield from json_rows(path, counts)
                case ".parquet":
                    yield from parquet_rows(path, columns)
                case ".arrow":
                    yield from arrow_rows(path)
                case _:
                    yield from csv_rows(path, ending, counts)
    except StoreError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are of these kinds
        raise ConfigError(f"{store.uri}/{key}: cannot be read as {ending[1:]} ({error})") from None


def ending_of(key: str) -> str:
    return f".{key.rpartition('.')[2].lower()}"


def json_rows(path: Path, counts: Counter[str]) -> Iterator[TableRow]:
    good, first = 0, ""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row, first = None, first or str(error)
            if isinstance(row, dict):
                good += 1
                yield row
            else:
                counts[BAD_ROW] += 1
    if not good:
        raise ValueError(first or "it has no row")


def csv_rows(path: Path, ending: str, counts: Counter[str]) -> Iterator[TableRow]:
    """Yields the rows of a table of text; one without a head, as Flickr30k's, has an image's name in front."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline()
        following = file.readline()
        delimiter = "\t" if ending in (".tsv", ".token") else max(DELIMITERS, key=head.count)
        # quotes are text in what is divided by tabs: Flickr30k's have single ones
        quoting = csv.QUOTE_NONE if delimiter == "\t" and head.count('"') % 2 else csv.QUOTE_MINIMAL
        spaced = f'{delimiter} "' in head + following  # a space before what is quoted
        lines = chain([head, following], file)
        read = csv.reader(lines, delimiter=delimiter, quoting=quoting, skipinitialspace=spaced)
        names = [name.strip() for name in next(read, [])]
        begin: list[list[str]] = []
        if names and is_image_name(names[0]):
            begin, names = [names], [*NAMELESS, *map(str, range(2, len(names)))]
        for cells in chain(begin, read):
            if not any(cells):
                continue
            if len(cells) < 2 <= len(names):
                counts[BAD_ROW] += 1
                continue
            if len(cells) > len(names):  # an unquoted delimiter in the last column, which is a text
                cells = [*cells[: len(names) - 1], delimiter.join(cells[len(names) - 1 :])]
            yield dict(zip(names, (cell.strip() for cell in cells), strict=False))


def is_image_name(text: str) -> bool:
    return WITH_NUMBER.sub("", text).rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[TableRow]:
    import pyarrow.parquet as pq  # needed for these formats alone

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=list(columns) if columns else None):
            yield from batch.to_pylist()


def arrow_rows(path: Path) -> Iterator[TableRow]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # Arrow's other format
            source.seek(0)
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            for start in range(0, len(batch), BATCH):
                yield from batch.slice(start, BATCH).to_pylist()


def number_of_rows(store: Store, key: str) -> int:
    """Returns the number of rows of a Parquet file on this machine; 0 where that is not known without reading."""
    path = store.path(key)
    if path is None or ending_of(key) != ".parquet":
        return 0
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (ValueError, OSError):
        return 0
