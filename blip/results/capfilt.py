"""Results of CapFilt: of scoring, of the selection, and of captioning or matching alone."""

from typing import Generic, Literal, TypeVar

from pydantic import Field

from blip.config import Config
from blip.results.result import Result, numbers

T = TypeVar("T")
Source = Literal["web", "synthetic"]
"""Origin of a text: the web, or the captioner."""
SOURCES: tuple[Source, ...] = ("web", "synthetic")


class Speed(Config):
    """Throughput of the workers."""

    images_per_second: float = 0.0
    """Images per second over all workers; 0 if all shards were already done."""
    workers: dict[str, float] = Field(default_factory=dict)
    """Images per second of each worker."""
    shares: dict[str, float] = Field(default_factory=dict)
    """Fraction of the workers' time by phase, 0 to 1."""


class CapFiltResult(Result):
    images: int
    """Number of images with scores."""
    shards: int
    """Number of shards with scores."""
    dead: dict[str, str] = Field(default_factory=dict)
    """Error of each failed shard that was set aside, by shard."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    speed: Speed = Speed()

    def compared(self) -> dict[str, float]:
        values = {
            "images": self.images,
            "shards": self.shards,
            "shards_set_aside": len(self.dead),
            "images_per_second": self.speed.images_per_second,
            "rejected": sum(self.rejected.values()),
        }
        return dict(numbers(values)) | super().compared()


class Change(Config, Generic[T]):
    before: T
    after: T


class Noise(Config):
    """Fraction of correct texts, 0 to 1, before and after filtering; None without ground truth."""

    web: Change[float | None]
    synthetic: Change[float | None]


class Kept(Config):
    """Precision, recall and fraction of kept texts, 0 to 1; correct texts are the positives."""

    precision: float | None
    recall: float | None
    kept: float


class KeptBySource(Config):
    web: Kept
    synthetic: Kept


class MatchHistogram(Config):
    """Number of texts of a source in equal bins of p(match) from 0 to 1, by ground truth."""

    source: Source
    true: tuple[int, ...]
    false: tuple[int, ...]
    unknown: tuple[int, ...]


class SelectResult(Result):
    noise: Noise
    capfilt: KeptBySource
    histograms: tuple[MatchHistogram, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    """Number of images and texts, in total, kept, and dropped by reason."""
    threshold: float | None = None
    """Minimum p(match) of a kept text; None unless both sources share one."""
    score: str = "match"
    """Column of the score in the histograms and beside the pictures: p(match), or one that the rule reads."""
    dead: dict[str, str] = Field(default_factory=dict)
    """Reason by shard for each shard without scores."""

    @property
    def score_name(self) -> str:
        """The score in words, for people."""
        return "p(match)" if self.score == "match" else self.score

    def compared(self) -> dict[str, float]:
        known = {"kept": {}, "precision": {}, "recall": {}}
        for source in SOURCES:
            for name, values in known.items():
                values[source] = getattr(getattr(self.capfilt, source), name)
        return dict(numbers(known)) | super().compared()


class LabelResult(Result):
    """What captioning or matching wrote."""

    images: int
    rows: int
    """Number of captions, or of scored texts."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of images without results by reason."""
    file: str
    """The path of the table."""
