"""What is read of own data, and how; what is not set is guessed from the files."""

import codecs
from typing import Literal

from pydantic import Field, field_validator

from blip.config import Config
from blip.shards.discover import Limits
from blip.shards.manifest import Layout

FormName = Literal["auto", "tars", "datasets", "annotations", "table", "texts"]


class Files(Layout, Limits):
    """Images with texts in one or several places, which are copied into shards.

    One set is given: shares of it become the splits, unless the data have splits of their own.
    """

    type: Literal["files"] = "files"
    path: str | tuple[str, ...] = ""
    """A folder, a file (table, annotations, tar), a pattern of these, or a list of several; here or in a store, or
    where fsspec reaches (`gs://`, `hf://`, `https://`)."""
    form: FormName = "auto"
    """What the places hold: `tars` (also `.tar.gz`), `datasets` (a folder that Hugging Face's library saved),
    `annotations` (JSON of COCO or Karpathy), a `table` (CSV, TSV, JSON lines, Parquet, Arrow), or images with `texts`
    beside them. `auto` guesses it by their names."""
    table: str = ""
    """The table or the annotation file, where a folder has several: its path in the folder."""
    image_field: str = ""
    """The table's column of image paths, or of the images themselves; empty guesses it."""
    encoding: str = ""
    """The encoding of tables of text, such as `cp1252`; empty guesses UTF-8, UTF-16 or Windows-1252."""
    split: str = ""
    """Shares of the splits, such as `0.9/0.1` or `gold=0.2/web=0.7/test=0.1`, as `Shares` reads them; images that look
    alike stay together. Empty keeps the splits of the data, or if they have none is 0.9/0.1."""

    anonymous: bool = False
    """Whether buckets are read without keys, as public ones can be."""

    @field_validator("encoding")
    @classmethod
    def is_known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name if value else ""
        except LookupError:
            raise ValueError(f"encoding is {value!r}, must be one that Python knows, such as utf-8 or cp1252") from None

    @property
    def places(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class Hints(Config):
    """The settings that a reader of one place needs."""

    layout: Layout = Layout()
    lost: float = Field(default=0.0, ge=0, le=1)
    table: str = ""
    image_field: str = ""
    encoding: str = ""

    @classmethod
    def of(cls, data: Files) -> "Hints":
        layout = Layout(**{name: getattr(data, name) for name in Layout.model_fields})
        return cls(
            layout=layout, lost=data.lost, table=data.table, image_field=data.image_field, encoding=data.encoding
        )
