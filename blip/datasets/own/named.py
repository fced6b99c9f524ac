"""Images by name: a record has an image's path, its texts and its split."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

from blip.datasets.own.entries import Entry, Form, Split, extension_of_image
from blip.shards.layout import usable_texts
from blip.shards.sample import BadSample, Sample
from blip.shards.sources import Stamps

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

    keys: list[str]
    """The files that have the records."""

    @abstractmethod
    def read(self, counts: Counter[str]) -> list[Record]:
        """Returns the records, one for each image, and counts what is none by reason. Raises ConfigError."""

    @cached_property
    def known(self) -> tuple[list[Record], Counter[str]]:
        """The records, and what is none by reason."""
        counts: Counter[str] = Counter()
        return self.read(counts), counts

    def stamps(self) -> Stamps:
        records, _ = self.known
        found = {key: self.place.chosen[key] for key in self.keys}
        for record in records:
            try:
                found |= self.place.image_stamp(record.name, record.folder)
            except BadSample:
                continue
        return found

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:
        records, others = self.known
        counts.update(others)
        self.total = len(records)
        for start in range(0, len(records), GROUP):
            yield [
                Entry(f"{record.folder}/{record.name}".lstrip("/"), partial(self.load, record), record.split)
                for record in records[start : start + GROUP]
            ]

    def load(self, record: Record) -> Sample:
        data, key = self.place.read_image(record.name, record.folder)
        texts, fault = usable_texts(record.texts) if record.texts else ([], "")
        return Sample("0", [data], texts, {"file": key}, extension_of_image(data, key), fault)
