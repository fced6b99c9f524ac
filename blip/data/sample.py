"""What every data set is made of: images and the texts that belong to them."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from blip.storage import StoreError

log = logging.getLogger(__name__)

ALWAYS_ALLOWED = 3
"""Unexpected errors that a job outlives whatever their share, unless its share is 0."""
MAX_DETAILS = 20
"""Unexpected errors that are kept with key and message."""


class BadSample(ValueError):  # noqa: N818
    """A sample that cannot be used. Its message is the reason alone, a few words without values: samples are counted by it."""


class UnexpectedError(BadSample):
    """A sample over which the code failed in a way that it does not know; `detail` has the sample, the error's type and its message."""

    def __init__(self, sample: str, error: Exception):
        super().__init__(f"unexpected {type(error).__name__}")
        self.detail = f"{sample}: {type(error).__name__}: {str(error)[:200]}"


class Rejected(Counter[str]):
    """How many samples were left out, by reason, and the details of those that nobody expected to fail."""

    def __init__(self, *counts: Any):
        super().__init__(*counts)
        self.details: list[str] = []
        self.unexpected = 0

    def add(self, error: BadSample) -> None:
        self[str(error)] += 1
        if isinstance(error, UnexpectedError):
            self.unexpected += 1
            if len(self.details) < MAX_DETAILS:
                self.details.append(error.detail)


def format_counts(counts: Mapping[str, int]) -> str:
    """Returns counts as text, `3 (no image), 1 (empty text)`; `nothing` if there are none."""
    return ", ".join(f"{number:,} ({reason})" for reason, number in sorted(counts.items())) or "nothing"


@contextmanager
def one_sample(name: str) -> Iterator[None]:
    """Turns what goes wrong over one sample into a BadSample that names it, so that it costs nothing but this sample.

    Errors of the store pass through: they are no fault of the sample.
    """
    try:
        yield
    except (BadSample, StoreError):
        raise
    except Exception as e:
        error = UnexpectedError(name, e)
        log.warning("left out sample %s", error.detail)
        raise error from e


def too_many_unexpected(unexpected: int, samples: int, share: float) -> bool:
    """Whether so many unexpected errors among so many samples are more than a job may outlive."""
    allowed = max(ALWAYS_ALLOWED, share * samples) if share else 0
    return unexpected > allowed


@dataclass
class Sample:
    """Encoded images (one, two, or the frames of a video), their texts, and what is known about them besides."""

    key: str
    images: list[bytes]
    texts: list[str]
    """None of them is empty."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    image_ext: str = "png"
    """Such as `png`; the same for all images."""
    text_fault: str = field(default="", compare=False)
    """Why a text that came with the sample cannot be read; empty where it can, and where none came."""
    shard: str = field(default="", compare=False)
    """SHA-256 of the shard that it lies in; empty where it lies in none."""

    @property
    def id(self) -> str:
        """What the sample is known by among all: keys may begin again in every shard."""
        return f"{self.shard[:12]}/{self.key}" if self.shard else self.key
