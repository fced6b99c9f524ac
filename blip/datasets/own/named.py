"""Images by name: a record has an image's path, its texts and its split."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from blip.datasets.own.entries import Entry, Form, Split, extension_of_image
from blip.datasets.own.place import MISSING
from blip.shards.layout import usable_texts
from blip.shards.sample import BadSample, Sample
from blip.storage import MissingKeyError

GROUP = 1000
"""Entries of a group."""


class Record(NamedTuple):
    name: str
    folder: str
    """The folder of the file that has the record, to which the name may be relative."""
    texts: list[str]
    split: Split = ""


class Named(Form):
    """A place whose images are named by records."""

    @abstractmethod
    def records(self, counts: Counter[str]) -> list[Record]:
        """Returns the records, one for each image. Raises ConfigError."""

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        records = self.records(counts)
        self.total = len(records)
        for start in range(0, len(records), GROUP):
            yield [
                Entry(f"{record.folder}/{record.name}".lstrip("/"), partial(self.load, record), record.split)
                for record in records[start : start + GROUP]
            ]

    def load(self, record: Record) -> Sample:
        key = self.place.image(record.name, record.folder)
        try:
            data = self.place.store.get(key)
        except MissingKeyError:  # the listing is older
            raise BadSample(MISSING) from None
        texts, fault = usable_texts(record.texts) if record.texts else ([], "")
        return Sample("0", [data], texts, {"file": key}, extension_of_image(data, key), fault)
