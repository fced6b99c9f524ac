"""Annotation files and images of a public data set, in a folder or a store, and what is said when they are missing."""

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from blip.batch import hash_id
from blip.config import Config, ConfigError
from blip.shards.sample import BadSample, Sample
from blip.storage import MissingKeyError, Store, hidden, open_store

MISSING = "image is missing"
NO_TEXT = "text is missing"
TWICE = "identifier occurs twice"
ODD = "record is not of the published form"
FAULTS = (KeyError, TypeError, IndexError, AttributeError, ValueError)
"""What reading a field raises that is missing or of another type."""


class Official(Config, ABC):
    """Where the files of a public data set lie, and what is read of them."""

    SPLITS: ClassVar[tuple[str, ...]]
    """The splits that the data set has."""
    TRAINING: ClassVar[tuple[str, ...]] = ("train",)
    """Those to train on; a tokenizer may be trained on their texts."""
    SOURCE: ClassVar[str]
    """Where its annotation files are published."""
    IMAGES: ClassVar[str]
    """Where its images or videos are published."""

    annotations: str = ""
    """The folder or store's URI of the annotation files, under their published names."""
    images: str = ""
    """The folder or store's URI of the images or videos, in the folders of their publishers."""
    splits: tuple[str, ...] = ()
    """The splits to read; none reads all."""
    lost: float = Field(default=0.0, ge=0, le=1)
    """Largest share of images or videos that may be missing; they are left out and counted. With 0, one is an error."""

    @model_validator(mode="after")
    def places_and_splits_are_known(self) -> Self:
        name = getattr(self, "type", "")
        if missing := [setting for setting in ("annotations", "images") if not getattr(self, setting)]:
            settings = " and ".join(f"data.{setting}=..." for setting in missing)
            raise ValueError(
                f"{name}: set {settings} to the folder or store's URI of the files: annotations are published at "
                f"{self.SOURCE}, images at {self.IMAGES}"
            )
        if unknown := [split for split in self.splits if split not in self.SPLITS]:
            raise ValueError(f"{name} has no split {unknown[0]!r}; choices: {', '.join(self.SPLITS)}")
        return self

    @property
    def read_splits(self) -> tuple[str, ...]:
        """The splits that are read."""
        return self.splits or self.SPLITS

    def files(self, rejected: Counter[str]) -> "AnnotationFiles":
        return AnnotationFiles(self.annotations, f"{getattr(self, 'type', '')}: annotations", self.SOURCE, rejected)

    def pictures(self, rejected: Counter[str]) -> "ImageFolder":
        return ImageFolder(self.images, self.IMAGES, rejected)

    def read(self, split: str, rejected: Counter[str]) -> Iterator[Sample]:
        """Yields the samples of a split; what is left out is counted in `rejected` by reason.

        Raises ConfigError if a file is missing, or none of its records is of the published form.
        """
        files, pictures = self.files(rejected), self.pictures(rejected)
        pictures.none_may_be_lost = self.lost == 0
        seen: set[int] = set()
        for sample in self.samples(split, files, pictures):
            key = hash_id(sample.key)
            if key in seen:
                rejected[TWICE] += 1
                continue
            seen.add(key)
            yield sample
        pictures.check_lost(self.lost)
        files.check_form(some=bool(seen))

    @abstractmethod
    def samples(self, split: str, files: "AnnotationFiles", pictures: "ImageFolder") -> Iterator[Sample]:
        """Yields the samples of a split."""


class AnnotationFiles:
    """The annotation files in a folder or a store."""

    def __init__(self, place: str, what: str, source: str, rejected: Counter[str]):
        self.store: Store = open_store(place)
        self.what = what
        self.source = source
        self.rejected = rejected
        self.first_fault: ConfigError | None = None

    def find(self, *names: str) -> str:
        """Returns the first of the names that exists. Raises ConfigError."""
        for name in names:
            if self.store.exists(name):
                return name
        places = ", ".join(f"{self.store.uri}/{name}" for name in names)
        raise ConfigError(
            f"{self.what} are missing: looked for {places}; get them from {self.source}, or name other splits by "
            "data.splits=[...]"
        )

    def text(self, name: str) -> str:
        try:
            return self.store.get(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.store.uri}/{name} is not UTF-8 ({error.reason} at byte {error.start})") from None

    def json(self, name: str, compact: Any = None) -> Any:
        """Returns the content of a JSON file; `compact` maps each of its mappings to what is kept of it."""
        try:
            return json.loads(self.text(name), object_hook=compact)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self.store.uri}/{name} is not JSON: {error}; copy it again from its source") from None

    def json_lines(self, name: str) -> list[Any]:
        """Returns the content of a file with one JSON value a line, or with a list of them."""
        text = self.text(name)
        if text.lstrip().startswith("["):
            return self.json(name)
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if line.strip():
                    found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{self.store.uri}/{name}: line {number} is not JSON: {error}") from None
        return found

    @contextmanager
    def form(self, name: str) -> Iterator[None]:
        """Turns errors of reading a file's fields into a ConfigError that names the file."""
        try:
            yield
        except ConfigError:
            raise
        except FAULTS as error:
            raise self.fault(name, error) from None

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Leaves out a record of a file that is not of the published form, or that cannot be used, and counts it."""
        try:
            yield
        except ConfigError:
            raise
        except (BadSample, *FAULTS) as error:
            self.rejected[str(error) if isinstance(error, BadSample) else ODD] += 1
            self.first_fault = self.first_fault or self.fault(name, error)

    def check_form(self, *, some: bool) -> None:
        """Raises ConfigError if records were left out, and `some` says that none was read."""
        if self.first_fault and not some:
            raise self.first_fault

    def fault(self, name: str, error: Exception) -> ConfigError:
        """Returns the error that a file is not of the published form, for the fault of a record."""
        said = f"has no {error}" if isinstance(error, KeyError) else f"cannot be used: {error}"
        return ConfigError(
            f"{self.store.uri}/{name} is not of the published form: a record {said}; copy it again from {self.source}"
        )


class ImageFolder:
    """The images or videos of a data set by name, in a folder or a store."""

    def __init__(self, place: str, source: str, rejected: Counter[str]):
        self.store: Store = open_store(place)
        self.source = source
        self.rejected = rejected
        self.none_may_be_lost = True
        self.asked = 0
        self.first_missing = ""
        self.form = 0
        """The position of the name that was found last: a data set's images are all of one form."""

    def get(self, *names: str) -> bytes | None:
        """Returns the image under the first of its possible names; None if it is missing, which is counted.

        Raises ConfigError if none may be missing.
        """
        found = self.find(*names)
        return None if found is None else self.store.get(found)

    def find(self, *names: str) -> str | None:
        """As `get`, but returns the name."""
        self.asked += 1
        order = [name for name in (*names[self.form : self.form + 1], *names) if not hidden(name)]
        for name in order:
            try:
                if self.store.exists(name):
                    self.form = names.index(name)
                    return name
            except MissingKeyError:
                continue
        self.rejected[MISSING] += 1
        self.first_missing = self.first_missing or " or ".join(f"{self.store.uri}/{name}" for name in names)
        if self.none_may_be_lost:
            raise self.error(1, 0)
        return None

    def check_lost(self, share: float) -> None:
        """Raises ConfigError if more images are missing than the share allows."""
        lost = self.rejected[MISSING]
        if lost > math.floor(share * self.asked):
            raise self.error(lost, share)

    def error(self, lost: int, share: float) -> ConfigError:
        return ConfigError(
            f"{lost} of {self.asked} images are missing, more than data.lost={share:g} allows, such as "
            f"{self.first_missing}; get them from {self.source}, name their folder by data.images=..., or raise "
            "data.lost"
        )


def extension_of(name: str) -> str:
    """Returns the extension of a file's name in lower case, without a dot."""
    return name.rpartition(".")[2].lower()


def key_of(text: Any) -> str:
    """Returns a name as a key of a sample, which has no dot."""
    return str(text).replace(".", "_").strip("/") or "_"


def text_of(value: Any) -> str:
    """Returns a text that is not blank. Raises BadSample."""
    if not isinstance(value, str) or not value.strip():
        raise BadSample(NO_TEXT)
    return value


def texts_of(values: Iterable[Any]) -> list[str]:
    """Returns the texts among some values that are not blank."""
    return [value for value in values if isinstance(value, str) and value.strip()]


def last_number(text: Any) -> int | None:
    """Returns the number in which a name without its extension ends: 42 of `val2014/COCO_val2014_000000000042.jpg`."""
    stem = str(text).rpartition("/")[2].partition(".")[0]
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if digits else None


def compact_answers(values: Mapping[str, Any]) -> Any:
    """Keeps the text alone of one annotator's answer: VQAv2 has 6.6 million of them."""
    return values["answer"] if "answer" in values and "answer_id" in values else values
