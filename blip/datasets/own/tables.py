"""Tables of images and their texts: which column is which, and the images by path or in the table itself."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from blip.config import ConfigError
from blip.datasets.own.config import Hints
from blip.datasets.own.entries import SPLIT_WORDS, Entry, Form, Split, extension_of_image, split_of
from blip.datasets.own.named import Named, Record
from blip.datasets.own.place import Place
from blip.datasets.own.rows import (
    BATCH,
    TABLES,
    UTF8,
    WITH_NUMBER,
    TableRow,
    ending_of,
    guessed_encoding,
    is_image_name,
    number_of_rows,
    read_rows,
)
from blip.shards.layout import usable_texts
from blip.shards.names import IMAGE_EXTENSIONS
from blip.shards.sample import BadSample, Sample
from blip.storage import is_web_address

IMAGE_FIELDS = (
    "image",
    "file_name",
    "image_path",
    "filepath",
    "path",
    "filename",
    "file",
    "img",
    "image_name",
    "image_file",
    "img_path",
    *IMAGE_EXTENSIONS,
)
TEXT_FIELDS = (
    "text",
    "caption",
    "captions",
    "texts",
    "title",
    "sentence",
    "sentences",
    "description",
    "comment",
    "raw",
    "alt_text",
)
"""Usual names of a table's columns, the likeliest first."""
SPLIT_FIELD = "split"
SHORTEST_BASE64 = 64
"""Characters of an image in base64; names are shorter or begin in another way."""
BASE64_SIGNATURES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0AKg", "Qk")
"""The first characters of a JPEG, PNG, GIF, WebP, TIFF or BMP in base64."""
PEEKED = 20
"""Rows by which the columns are guessed."""
DOWNLOADED = ("url", "status")
"""Columns of img2dataset's records of what it downloaded."""
NO_IMAGE = "row has no image"


class Columns(NamedTuple):
    image: str
    texts: tuple[str, ...]
    """One, or several that are numbered (`caption_1`, `caption_2`)."""
    split: str
    """The column of the split; empty if there is none."""
    embedded: bool
    """Whether images are in the table itself."""
    encoding: str
    """That of a table of text, empty for other formats."""

    def texts_of(self, row: TableRow) -> list[str]:
        return [text for name in self.texts for text in texts_in(row.get(name))]

    def split_of(self, row: TableRow, otherwise: Split) -> Split:
        return SPLIT_WORDS.get(str(row.get(self.split)).lower(), "") if self.split else otherwise


def texts_in(value: Any) -> list[str]:
    """Returns the texts of a cell: one, a list, a list written as JSON, or mappings with a text each."""
    match value:
        case None:
            return []
        case str() if value.startswith("[") and value.endswith("]"):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                return [value]
            return texts_in(found) if isinstance(found, list) else [value]
        case str():
            return [value]
        case list():
            return [text for inner in value for text in texts_in(inner)]
        case dict():
            return texts_in(next((value[name] for name in TEXT_FIELDS if name in value), None))
        case float() if value != value:  # how tables have nothing in a column of numbers
            return []
        case _:
            return [str(value)]


def tables_of(place: Place, hints: Hints) -> list[str]:
    """Returns the tables among the chosen files of a place, without img2dataset's records.

    Raises ConfigError if there are several of which no path names a split.
    """
    found = [key for key in place.chosen if ending_of(key) in TABLES or is_captions(key)]
    if hints.table:
        if hints.table not in place.chosen:
            raise ConfigError(f"data.table {hints.table!r}: there is no {place.store.uri}/{hints.table}")
        return [hints.table]
    found = [key for key in found if not is_record(place, key)]
    several = len(found) > 1 and any(ending_of(key) not in (".parquet", ".arrow") for key in found)
    apart = len({key.rpartition("/")[0] for key in found}) == len(found)  # metadata.csv in each folder
    if several and not place_is_pattern(place) and not apart and not all(map(split_of, found)):
        raise ConfigError(
            f"{place.source}: holds several tables ({', '.join(found[:10])}); set data.table to one, or name them all"
        )
    return found


def place_is_pattern(place: Place) -> bool:
    return not place.whole


def is_captions(key: str) -> bool:
    """Returns whether a file is Flickr8k's table, which ends as a text."""
    return key.rpartition("/")[2].lower() in ("captions.txt", "results.txt")


def is_record(place: Place, key: str) -> bool:
    """Returns whether a Parquet file says how img2dataset downloaded a tar or a folder."""
    if not key.endswith(".parquet"):
        return False
    record = key.replace(".parquet", "_stats.json")
    return record in place.chosen or (not place.whole and place.store.exists(record))


def find_columns(place: Place, key: str, hints: Hints) -> Columns:
    """Returns the columns of a table, as set, by their usual names, or by what they hold. Raises ConfigError."""
    encoding = hints.encoding or guessed_encoding(place.store, key)
    rows = list(islice(read_rows(place.store, key, Counter(), encoding=encoding), PEEKED))
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    if not names:
        raise ConfigError(f"{place.store.uri}/{key}: has no row; name another table by data.table")
    image = hints.image_field or usual(names, IMAGE_FIELDS) or by_content(place, key, names, rows)
    if not image and (addresses := next((name for name in names if is_web_address(rows[0].get(name))), "")):
        raise ConfigError(
            f"{place.store.uri}/{key}: its column {addresses!r} has web addresses, which are not fetched; download "
            "them, by img2dataset for example, and name the folder that it writes"
        )
    require(image, "image", names, f"{place.store.uri}/{key}", hints.image_field)
    rest = [name for name in names if name not in (image, SPLIT_FIELD)]
    wanted = hints.layout.text_field
    texts = numbered(rest, wanted) if wanted else usual_texts(rest)
    if not texts and not wanted:
        words = [name for name in rest if any(isinstance(row.get(name), str | list) for row in rows)]
        texts = tuple(words) if len(words) == 1 else ()
    require(texts[0] if texts else "", "text", names, f"{place.store.uri}/{key}", wanted)
    embedded = any(image_bytes(row.get(image)) for row in rows)
    return Columns(image, texts, SPLIT_FIELD if SPLIT_FIELD in names else "", embedded, encoding)


def require(name: str, what: str, names: Sequence[str], table: str, given: str) -> None:
    """Raises ConfigError if no column is found."""
    if name not in names:
        wrong = f"there is no column {given!r}" if given else f"which column is the {what}?"
        raise ConfigError(f"{table}: {wrong} Set data.{what}_field to one of {', '.join(names)}")


def usual(names: Sequence[str], known: Sequence[str]) -> str:
    """Returns the first of the known names that there is, in any case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), "")


def usual_texts(names: Sequence[str]) -> tuple[str, ...]:
    name = usual(names, TEXT_FIELDS)
    return (name,) if name else next((found for known in TEXT_FIELDS if (found := numbered(names, known))), ())


def numbered(names: Sequence[str], wanted: str) -> tuple[str, ...]:
    """Returns the column of that name, or else all of that name with a number."""
    if wanted in names:
        return (wanted,)
    return tuple(name for name in names if re.fullmatch(rf"{re.escape(wanted)}[_ ]?\d+", name, re.IGNORECASE))


def by_content(place: Place, key: str, names: Sequence[str], rows: Sequence[TableRow]) -> str:
    """Returns the column whose first values are images, or names of images that are there; empty if none is."""
    folder = key.rpartition("/")[0]

    def is_there(value: Any, whole: bool) -> bool:
        if image_bytes(value):
            return True
        try:
            return isinstance(value, str) and is_image_name(value) >= whole and bool(place.image(value, folder))
        except BadSample:
            return False

    # a name without its extension may be a number that means something else
    tries = ((name, whole) for whole in (True, False) for name in names)
    return next((name for name, whole in tries if any(is_there(row.get(name), whole) for row in rows)), "")


def image_bytes(value: Any) -> bytes | None:
    """Returns the encoded image in a cell; None if there is none.

    It is there as bytes, as a mapping with `bytes`, which Hugging Face's library writes, or in base64.
    """
    found = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(found, str) and len(found) >= SHORTEST_BASE64 and found.startswith(BASE64_SIGNATURES):
        try:
            found = base64.b64decode(found, validate=True)
        except ValueError:
            return None
    return bytes(found) if isinstance(found, bytes | bytearray) else None


def image_name(value: Any) -> str:
    """Returns the path of an image in a cell; empty if it has none."""
    found = value.get("path") if isinstance(value, Mapping) else value
    return WITH_NUMBER.sub("", found) if isinstance(found, str) else ""


class NamedByTable(Named):
    """Images that one or several tables name."""

    def __init__(self, place: Place, keys: list[str], columns: Columns):
        self.place, self.keys, self.columns = place, keys, columns
        self.words = f"images that {shown(keys)} {'names' if len(keys) == 1 else 'name'}"
        self.settings = column_settings(keys, columns, "table")

    def read(self, counts: Counter[str]) -> list[Record]:
        found: dict[tuple[str, str], Record] = {}
        for key in self.keys:
            folder, named = key.rpartition("/")[0], split_of(key)
            for row in read_rows(self.place.store, key, counts, used(self.columns), self.columns.encoding):
                name = image_name(row.get(self.columns.image))
                if not name:
                    counts[NO_IMAGE] += 1
                    continue
                split = self.columns.split_of(row, named)
                record = found.setdefault((folder, name), Record(name, folder, [], split))
                record.texts.extend(self.columns.texts_of(row))
        return list(found.values())


class InTable(Form):
    """Images that are in the tables themselves, as data sets on the hub have them."""

    def __init__(self, place: Place, keys: list[str], columns: Columns, form: str):
        self.place, self.keys, self.columns = place, keys, columns
        self.total = sum(number_of_rows(place.store, key) for key in keys)
        self.words = f"images in {shown(keys)}"
        self.settings = column_settings(keys, columns, form)

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        known, seen = self.total, 0
        for tables, key in enumerate(self.keys, start=1):
            named = split_of(key)
            rows = enumerate(read_rows(self.place.store, key, counts, used(self.columns), self.columns.encoding))
            while part := list(islice(rows, BATCH)):
                seen += len(part)
                self.total = known or round(seen / tables * len(self.keys))
                yield [
                    Entry(f"{key}/{number}", partial(self.load, key, number, row), self.columns.split_of(row, named))
                    for number, row in part
                ]

    def load(self, key: str, number: int, row: TableRow) -> Sample:
        cell = row.get(self.columns.image)
        data, name = image_bytes(cell), image_name(cell)
        if data is None:
            if not name:
                raise BadSample(NO_IMAGE)
            data, _ = self.place.read_image(name, key.rpartition("/")[0])
        found = self.columns.texts_of(row)
        texts, fault = usable_texts(found) if found else ([], "")
        meta = {"file": f"{key}/{number}", **({"name": name} if name else {})}
        return Sample("0", [data], texts, meta, extension_of_image(data, name), fault)


def shown(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys):,} tables ({keys[0]} ... {keys[-1]})"


def used(columns: Columns) -> list[str]:
    return list(dict.fromkeys(filter(None, (columns.image, *columns.texts, columns.split))))


def column_settings(keys: Sequence[str], columns: Columns, form: str) -> dict[str, str]:
    texts = {re.sub(r"[_ ]?\d+$", "", name) if len(columns.texts) > 1 else name for name in columns.texts}
    table = {"table": keys[0]} if len(keys) == 1 else {}
    odd = {"encoding": columns.encoding} if columns.encoding not in ("", UTF8) else {}
    return {"form": form, **table, **odd, "image_field": columns.image, "text_field": ", ".join(sorted(texts))}


def read_table(place: Place, keys: list[str], hints: Hints, form: str = "table") -> Form:
    """Returns the form of tables, whose columns are those of the first. Raises ConfigError."""
    columns = find_columns(place, keys[0], hints)
    return InTable(place, keys, columns, form) if columns.embedded else NamedByTable(place, keys, columns)
