"""Rows of tables: CSV, TSV, JSON lines, Parquet, and the Arrow files of Hugging Face's library."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO, cast

from blip.config import ConfigError
from blip.shards.layout import without_surrogates
from blip.shards.names import IMAGE_EXTENSIONS
from blip.shards.reading import local_copy
from blip.storage import ObjectFile, Store, StoreError

TEXT_TABLES = (".csv", ".tsv", ".token", ".jsonl", ".ndjson")
TABLES = (*TEXT_TABLES, ".parquet", ".arrow")
"""Endings of tables."""
DELIMITERS = ",\t|;"
MAX_FIELD = 16 << 20
"""Characters of a field."""
BUFFER = 1 << 20
"""Bytes of a table in a store that are read at once."""
UTF8, UTF16, WINDOWS = "utf-8", "utf-16", "cp1252"
BATCH = 64
"""Rows of a table with images that are in memory at once."""
BAD_ROW = "row of a table cannot be read"
NAMELESS = ("image", "text")
"""The columns of a table without a head."""
WITH_NUMBER = re.compile(r"#\d+$")
"""Flickr30k's number of a text behind an image's name."""

TableRow = dict[str, Any]


def read_rows(
    store: Store, key: str, counts: Counter[str], columns: Sequence[str] | None = None, encoding: str = ""
) -> Iterator[TableRow]:
    """Yields the rows of a table; broken ones are counted.

    `columns` spares reading others, where the format allows it. `encoding` is that of a table of text, guessed if it is
    empty. Raises ConfigError if the table cannot be read.
    """
    ending = ending_of(key)
    try:
        with opened(store, key) as file:
            match ending:
                case ".parquet":
                    yield from parquet_rows(file, columns)
                case ".arrow":
                    yield from arrow_rows(file)
                case ".jsonl" | ".ndjson":
                    yield from json_rows(as_text(file, encoding), counts)
                case _:
                    yield from csv_rows(as_text(file, encoding), ending, counts)
    except StoreError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are of these kinds
        raise ConfigError(f"{store.uri}/{key}: cannot be read as {ending[1:]} ({error})") from None


def ending_of(key: str) -> str:
    return f".{key.rpartition('.')[2].lower()}"


@contextmanager
def opened(store: Store, key: str) -> Iterator[BinaryIO]:
    """Opens an object to read parts of it; where parts cannot be read, all of it is copied."""
    if store.path(key) is None and store.reads_parts(key):
        with io.BufferedReader(ObjectFile(store, key), BUFFER) as file:
            yield cast(BinaryIO, file)
    else:
        with local_copy(store, key) as path, path.open("rb") as file:
            yield file


def as_text(file: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """Returns the text of a file; bytes that are not of its encoding become lone surrogates."""
    encoding = encoding or encoding_of(file)
    file.seek(0)
    return io.TextIOWrapper(file, f"{encoding}-sig" if encoding == UTF8 else encoding, "surrogateescape", newline="")


def guessed_encoding(store: Store, key: str) -> str:
    """Returns the encoding of a table of text; an empty string for one of another format. Raises StoreError."""
    if ending_of(key) in (".parquet", ".arrow"):
        return ""
    with opened(store, key) as file:
        return encoding_of(file)


def encoding_of(file: BinaryIO) -> str:
    """Guesses the encoding of a text: UTF-16 by its mark, Windows-1252 if more lines are no UTF-8 than are, or UTF-8.

    Lines in ASCII tell nothing.
    """
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return UTF16
    file.seek(0)
    good = bad = 0
    for line in file:
        if not line.isascii():
            try:
                line.decode(UTF8)
                good += 1
            except UnicodeDecodeError:
                bad += 1
    return WINDOWS if bad > good else UTF8


def json_rows(file: io.TextIOBase, counts: Counter[str]) -> Iterator[TableRow]:
    good, first = 0, ""
    for line in filter(str.strip, file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, first = None, first or str(error)
        if isinstance(row, dict):
            good += 1
            yield without_surrogates(row) if "\\ud" in line.lower() else row
        else:
            counts[BAD_ROW] += 1
    if not good:
        raise ValueError(first or "it has no row")


def csv_rows(file: io.TextIOBase, ending: str, counts: Counter[str]) -> Iterator[TableRow]:
    """Yields the rows of a table of text; one without a head, as Flickr30k's, has an image's name in front."""
    csv.field_size_limit(MAX_FIELD)
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


def parquet_rows(source: BinaryIO, columns: Sequence[str] | None) -> Iterator[TableRow]:
    import pyarrow.parquet as pq  # needed for these formats alone

    with pq.ParquetFile(source, pre_buffer=False) as file:
        wanted = list(columns) if columns else None
        for group in range(file.num_row_groups):  # one after the other, or all of them would be read for the first
            for batch in file.iter_batches(BATCH, [group], columns=wanted):
                yield from batch.to_pylist()


def arrow_rows(file: BinaryIO) -> Iterator[TableRow]:
    import pyarrow as pa

    with pa.PythonFile(file, mode="r") as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # Arrow's other format
            source.seek(0)
            table = pa.ipc.open_file(source)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
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
