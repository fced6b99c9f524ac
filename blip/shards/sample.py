"""Samples: encoded images, their texts, and the reasons for which samples are left out."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from blip.storage import StoreError

log = logging.getLogger(__name__)

ALWAYS_ALLOWED = 3
"""Unexpected errors that a job tolerates whatever their share, unless the allowed share is 0."""
MAX_DETAILS = 20
"""Unexpected errors that are recorded with key and message."""


class BadSample(ValueError):  # noqa: N818
    """A sample that cannot be used. The message is a reason without values, since samples are counted by it."""


class UnexpectedError(BadSample):
    """An error that no check anticipates; `detail` names the sample, the error's type and its message."""

    def __init__(self, sample: str, error: Exception):
        super().__init__(f"unexpected {type(error).__name__}")
        self.detail = f"{sample}: {type(error).__name__}: {str(error)[:200]}"


class Rejected(Counter[str]):
    """Counts of the samples that were left out, by reason, with the details of unexpected errors."""

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
    """Converts exceptions to BadSample, so that an error costs one sample; `name` identifies it in the log.

    StoreError passes through: the sample is not its cause.
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
    """Returns whether the number of unexpected errors exceeds the allowed share of the samples."""
    allowed = max(ALWAYS_ALLOWED, share * samples) if share else 0
    return unexpected > allowed


@dataclass
class Sample:
    """Encoded images (one, two, or the frames of a video) with their texts and metadata."""

    key: str
    images: list[bytes]
    texts: list[str]
    """No text is empty."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON values."""
    image_ext: str = "png"
    """The extension without a dot, such as `png`; the same for all images."""
    text_fault: str = field(default="", compare=False)
    """Why the sample's text cannot be read; empty if it can be, or if the sample has none."""
    shard: str = field(default="", compare=False)
    """SHA-256 of the shard that contains the sample; empty if it is in none."""

    @property
    def id(self) -> str:
        """The sample's id in the whole data set: keys may repeat across shards."""
        return f"{self.shard[:12]}/{self.key}" if self.shard else self.key
