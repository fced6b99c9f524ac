"""Images in folders, with texts in a table (CSV, JSON lines, Parquet) or in files beside them."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from blip.config import Config, ConfigError
from blip.shards.layout import decode_text
from blip.shards.names import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from blip.shards.sample import Sample

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_FIELDS = ("image", "file_name", "image_path", "filepath", "path", "filename", "file", "img")
TEXT_FIELDS = ("text", "caption", "captions", "texts", "title", "sentence", "description")
"""Usual names of a table's columns, the likeliest first."""
MISSING = "image file is missing"
OUTSIDE = "image path leads out of the folder"

TableRow = dict[str, Any]


class Files(Config):
    """A folder of images. One set is given: a share of its images becomes the test split, the rest is gold and web."""

    type: Literal["files"] = "files"
    path: str = ""
    """The folder."""
    table: str = ""
    """The table of image paths and texts in the folder; empty takes the only one, or texts beside the images."""
    image_field: str = ""
    """The table's column of image paths, relative to the folder; empty guesses it by its name."""
    text_field: str = ""
    """The table's column of a text, or of a list of texts; empty guesses it by its name."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """The share of images for the test split. Images that look alike to a perceptual hash go to one split."""


def is_files(path: Path) -> bool:
    """Returns whether a folder holds images or a table of them, and no tars."""
    if not path.is_dir() or any(".tar" in file.name for file in path.iterdir()):
        return False
    return bool(tables(path)) or any(is_image(file) for file in path.rglob("*"))


def tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLES)


def is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS


def read_files(data: Files, counts: Counter[str]) -> Iterator[Sample]:
    """Yields an image's sample with all of its texts, in the order of the table or of paths.

    What has no file is counted by reason. Raises ConfigError if the folder has no images, or the table no such columns.
    """
    folder = Path(data.path)
    if not folder.is_dir():
        raise ConfigError(f"data.path {data.path!r}: no such folder; name the folder of images")
    found = tables(folder)
    if not data.table and len(found) > 1:
        raise ConfigError(
            f"data.path {data.path}: holds several tables ({', '.join(file.name for file in found)}); set data.table"
        )
    table = folder / data.table if data.table else next(iter(found), None)
    if table is not None and not table.is_file():
        raise ConfigError(f"data.table {data.table!r}: there is no {table}")
    texts = texts_of_table(table, data) if table else texts_beside(folder)
    if not texts:
        raise ConfigError(f"data.path {data.path}: holds no images; name a folder of images, or a table of them")
    for number, (name, its_texts) in enumerate(texts.items()):
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            counts[OUTSIDE] += 1
        elif not path.is_file():
            counts[MISSING] += 1
        else:
            ending = path.suffix[1:].lower()
            usable = [text for text in its_texts if text.strip()]
            meta = {"file": name}
            yield Sample(f"{number:09d}", [path.read_bytes()], usable, meta, image_ext=ending)


def texts_beside(folder: Path) -> dict[str, list[str]]:
    """Returns the texts of each image by its path in the folder, from files that differ in their ending alone."""
    found: dict[str, list[str]] = {}
    for path in sorted(file for file in folder.rglob("*") if is_image(file)):
        beside = [path.with_suffix(f".{ending}") for ending in TEXT_EXTENSIONS]
        text = next((file for file in beside if file.is_file()), None)
        found[path.relative_to(folder).as_posix()] = decode_text(text.read_bytes())[0] if text else []
    return found


def texts_of_table(table: Path, data: Files) -> dict[str, list[str]]:
    """Returns the texts of each image by its path, of all of its rows. Raises ConfigError if a column is missing."""
    found: dict[str, list[str]] = {}
    columns: tuple[str, str] | None = None
    for row in rows(table):
        columns = columns or columns_of(list(row), table, data)
        value = row.get(columns[1])
        texts = value if isinstance(value, list) else [value]
        found.setdefault(str(row.get(columns[0])), []).extend(str(text) for text in texts if text is not None)
    return found


def columns_of(names: list[str], table: Path, data: Files) -> tuple[str, str]:
    """Returns the columns of image and text, as set or by their usual names. Raises ConfigError."""
    chosen = []
    for setting, given, usual in (
        ("image_field", data.image_field, IMAGE_FIELDS),
        ("text_field", data.text_field, TEXT_FIELDS),
    ):
        name = given or next((name for name in usual if name in names), "")
        if name not in names:
            raise ConfigError(
                f"{table}: which column is the {setting.partition('_')[0]}? Set data.{setting} to one of "
                f"{', '.join(names)}"
            )
        chosen.append(name)
    return chosen[0], chosen[1]


def rows(table: Path) -> Iterator[TableRow]:
    """Yields the rows of a table. Raises ConfigError if it cannot be read."""
    try:
        match table.suffix.lower():
            case ".csv" | ".tsv":
                with table.open(encoding="utf-8-sig", newline="") as file:
                    yield from csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            case ".jsonl":
                with table.open(encoding="utf-8-sig") as file:
                    yield from (json.loads(line) for line in file if line.strip())
            case _:
                import pyarrow.parquet as pq  # needed for this format alone

                for batch in pq.ParquetFile(table).iter_batches():
                    yield from batch.to_pylist()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{table}: cannot be read as {table.suffix[1:]} ({error})") from None
