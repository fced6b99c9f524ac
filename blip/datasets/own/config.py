"""What is read of own data, and how; what is not set is guessed from the files."""

from typing import Literal

from pydantic import Field

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
    split: str = ""
    """Shares of the splits, such as `0.9/0.1` or `gold=0.2/web=0.7/test=0.1`, as `Shares` reads them; images that look
    alike stay together. Empty keeps the splits of the data, or if they have none is 0.9/0.1."""

    anonymous: bool = False
    """Whether buckets of S3 are read without keys, as public ones can be."""

    @property
    def places(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class Hints(Config):
    """The settings that a reader of one place needs."""

    layout: Layout = Layout()
    lost: float = Field(default=0.0, ge=0, le=1)
    table: str = ""
    image_field: str = ""

    @classmethod
    def of(cls, data: Files) -> "Hints":
        layout = Layout(**{name: getattr(data, name) for name in Layout.model_fields})
        return cls(layout=layout, lost=data.lost, table=data.table, image_field=data.image_field)
