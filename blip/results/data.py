"""Results of the verbs that read and write data."""

from pydantic import Field

from blip.config import Config
from blip.results.result import Result, numbers


class SplitResult(Config):
    """One split of an ingested data set."""

    samples: int
    shards: int
    counts: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    digest: str = ""
    """Digest of the manifest."""


class IngestResult(Result):
    splits: dict[str, SplitResult]
    """Splits by name: gold, web and test."""
    vocabulary: int
    """Vocabulary size of the tokenizer."""
    unknown: float = 0.0
    """Fraction of words unknown to the tokenizer, 0 to 1."""

    def compared(self) -> dict[str, float]:
        samples = {split: found.samples for split, found in self.splits.items()}
        return dict(numbers({"samples": samples, "vocabulary": self.vocabulary})) | super().compared()


class DryRunResult(Result):
    """What an ingestion would read, of the images that were looked at."""

    page: str
    """The path of the page."""
    found: tuple[str, ...]
    """What each place holds, in plain words."""
    images: int
    """Images that were looked at."""
    splits: dict[str, int]
    """Those that would be used, by split."""
    left_out: dict[str, int]
    """Those that would not, and what belongs to no image, by reason."""
    refused: str = ""
    """Why the ingestion would end, with the setting to change; empty if it would not."""

    @classmethod
    def verb(cls) -> str:
        return "ingest --dry-run"


class FeaturesResult(Result):
    """The features of a data set's images that were kept."""

    images: int = 0
    """Images that were encoded."""
    images_per_second: float = 0.0
    """Speed of reading and encoding them; 0 if there were none."""
    found: int = 0
    """Images of shards whose features were there from before."""
    bytes: int = 0
    """Size of the shards."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Samples that were left out by reason."""

    @classmethod
    def verb(cls) -> str:
        return "cache-features"


class WriteTarsResult(Result):
    images: int
    texts: int
    samples: int
    tars: int
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    pattern: str
    """Names of the tar files as a webdataset pattern."""
