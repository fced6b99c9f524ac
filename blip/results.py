"""What the verbs found: one frozen class a verb.

The dump of a result is its step's `metrics.json`; the report, the step pages, MLflow and KFP take the class. The
classes stand together on the lowest floor, since the report reads them all and must not import the verbs.
"""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, Field

from blip.config import Config, ConfigError, validate

T = TypeVar("T")

Source = Literal["web", "synthetic"]
"""Where a text comes from: the web, or the captioner."""
SOURCES: tuple[Source, ...] = ("web", "synthetic")
Point = tuple[int, float]
"""An optimizer step and a value."""


class Result(Config):
    """What every verb finds. Numbers may be NaN: a step that has finished is not lost for an odd figure."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    seconds: float = 0.0
    """Wall time."""
    gpu_hours: float = 0.0
    """Over all attempts and workers."""
    mlflow: str = ""
    """The address of its run in MLflow; empty where MLflow is no server."""
    digest: str = ""
    """Of the manifest or model that the verb made or judged."""

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises ConfigError in one line where the file is missing or holds something else."""
        try:
            values = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name the metrics.json of a finished {cls.verb()}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not JSON ({error}); name the metrics.json of a finished {cls.verb()}"
            ) from None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path} must hold the metrics.json of a finished {cls.verb()}, holds a {type(values).__name__}"
            )
        return validate(cls, values, f"{path} is not the metrics.json of a finished {cls.verb()}")

    @classmethod
    def verb(cls) -> str:
        """`train` of `TrainResult`."""
        return cls.__name__.removesuffix("Result").lower()

    def notes(self) -> list[str]:
        """Sentences that a person should read first."""
        return []

    def compared(self) -> dict[str, float]:
        """The few numbers by which runs are compared, finite ones alone, under dotted names."""
        return dict(numbers({"seconds": self.seconds, **({"gpu_hours": self.gpu_hours} if self.gpu_hours else {})}))


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Pairs of dotted name and finite number in nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and isfinite(value):
            yield f"{prefix}{name}", value


class SplitResult(Config):
    """One split of an ingested data set."""

    samples: int
    shards: int
    counts: dict[str, int] = Field(default_factory=dict)
    """Samples left out, by reason."""
    digest: str = ""
    """Of the manifest."""


class IngestResult(Result):
    splits: dict[str, SplitResult]
    """gold, web and test."""
    vocabulary: int
    """Entries of the tokenizer."""
    unknown: float = 0.0
    """The share of words that the tokenizer does not know, 0 to 1."""

    def compared(self) -> dict[str, float]:
        samples = {split: found.samples for split, found in self.splits.items()}
        return dict(numbers({"samples": samples, "vocabulary": self.vocabulary})) | super().compared()


class Alarm(Config):
    """A condition that a person should know of, and the optimizer step at which it was seen."""

    name: str
    step: int

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')} at step {self.step}"


class TrainResult(Result):
    steps: int
    """Optimizer steps."""
    losses: dict[str, float]
    """The last value of each loss."""
    curves: dict[str, list[Point]]
    """By loss."""
    alarms: tuple[Alarm, ...] = ()
    rejected: dict[str, int] = Field(default_factory=dict)
    """Samples left out, by reason."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""

    def notes(self) -> list[str]:
        return [f"Alarm: {alarm}" for alarm in self.alarms]

    def compared(self) -> dict[str, float]:
        values = {
            "losses": self.losses,
            "steps": self.steps,
            "alarms": len(self.alarms),
            "rejected": sum(self.rejected.values()),
        }
        return dict(numbers(values)) | super().compared()


class Speed(Config):
    """How fast workers were."""

    images_per_second: float = 0.0
    """Of all workers together; 0 where every shard was done before."""
    workers: dict[str, float] = Field(default_factory=dict)
    """Images a second of each worker."""
    shares: dict[str, float] = Field(default_factory=dict)
    """The share of the workers' time that each part of the work took, 0 to 1."""


class CapFiltResult(Result):
    images: int
    """Images with scores."""
    shards: int
    """Shards with scores."""
    dead: dict[str, str] = Field(default_factory=dict)
    """Why each shard that was set aside could not be done."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Samples left out, by reason."""
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
    """The share of true texts, 0 to 1, among all and among those kept; None where the truth is not known."""

    web: Change[float | None]
    synthetic: Change[float | None]


class Kept(Config):
    """Of the texts kept the share that is true, of the true texts the share kept, and of all texts the share kept, 0 to
    1.
    """

    precision: float | None
    recall: float | None
    kept: float


class KeptBySource(Config):
    web: Kept
    synthetic: Kept


class MatchHistogram(Config):
    """How many texts of a source have a p(match) in each of equal parts of 0 to 1, by what is known of their truth."""

    source: Source
    true: tuple[int, ...]
    false: tuple[int, ...]
    unknown: tuple[int, ...]


class SelectResult(Result):
    noise: Noise
    capfilt: KeptBySource
    histograms: tuple[MatchHistogram, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    """Images and texts, those kept, and those dropped by reason."""
    threshold: float | None = None
    """The p(match) from which on a text is kept, where it is one for both sources."""
    dead: dict[str, str] = Field(default_factory=dict)
    """Why each shard without scores has none."""

    def compared(self) -> dict[str, float]:
        known = {"kept": {}, "precision": {}, "recall": {}}
        for source in SOURCES:
            for name, values in known.items():
                values[source] = getattr(getattr(self.capfilt, source), name)
        return dict(numbers(known)) | super().compared()


class WriteTarsResult(Result):
    images: int
    texts: int
    samples: int
    tars: int
    rejected: dict[str, int] = Field(default_factory=dict)
    """Samples left out, by reason."""
    pattern: str
    """The tars, as webdataset takes them."""


class EvaluationResult(Result):
    split: str
    scores: dict[str, dict[str, float]]
    """By task, then by name, as `Task.score` returns them."""
    described: dict[str, str] = Field(default_factory=dict)
    """The captions of the first images, by sample id."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Samples left out, by reason."""

    @classmethod
    def verb(cls) -> str:
        return "evaluate"

    def named(self) -> dict[str, float]:
        """All scores under names such as `retrieval.mean`, those that are not finite too."""
        return {f"{task}.{name}": value for task, scores in self.scores.items() for name, value in scores.items()}

    def compared(self) -> dict[str, float]:
        return dict(numbers(self.scores)) | {"rejected": sum(self.rejected.values())} | super().compared()


class GateResult(Result):
    registered: bool
    version: int | None = None
    """In the registry."""
    reason: str
    """Why the model was registered, or was not, in one sentence."""

    def notes(self) -> list[str]:
        return [self.reason]

    @classmethod
    def verb(cls) -> str:
        return "register"

    def compared(self) -> dict[str, float]:
        return {"registered": self.registered, **super().compared()}
