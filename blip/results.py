"""Results of the verbs, one frozen class per verb.

The JSON of a result is its step's `metrics.json`; the report, the step pages, MLflow and KFP read the classes. All
classes are in this module, which imports no verb, since the report reads them and must not import the verbs.
"""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, Field

from blip.config import Config, ConfigError, validate
from blip.storage import write_file

T = TypeVar("T")

Source = Literal["web", "synthetic"]
"""Origin of a text: the web, or the captioner."""
SOURCES: tuple[Source, ...] = ("web", "synthetic")
Point = tuple[int, float]
"""An optimizer step and a value."""


class Result(Config):
    """Fields common to all results.

    Numbers may be NaN, so that one undefined value does not fail a finished step.
    """

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    seconds: float = 0.0
    """Wall time in seconds."""
    gpu_hours: float = 0.0
    """GPU hours over all attempts and workers."""
    mlflow: str = ""
    """URL of the MLflow run; empty without an MLflow server."""
    digest: str = ""
    """Digest of the manifest or model that the verb wrote or evaluated."""

    def save(self, path: str | Path) -> None:
        """Writes the result to a file. Raises StoreError if that is impossible."""
        write_file(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote. Raises ConfigError, with a one-line message, if it is missing or invalid."""
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
        """Returns the verb's name, such as `train` for `TrainResult`."""
        return cls.__name__.removesuffix("Result").lower()

    def notes(self) -> list[str]:
        """Returns sentences to show at the top of a page."""
        return []

    def compared(self) -> dict[str, float]:
        """Returns the finite key figures for the comparison of runs, by dotted name."""
        return dict(numbers({"seconds": self.seconds, **({"gpu_hours": self.gpu_hours} if self.gpu_hours else {})}))


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the dotted names and values of the finite numbers in nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and isfinite(value):
            yield f"{prefix}{name}", value


SMALLER_IS_BETTER = ("mean_rank", "median_rank")
"""Scores of which a smaller one is better: their gain is what they are smaller by."""


def gain(metric: str, new: float, old: float) -> float:
    """Returns by how much a score, such as `dialog.mrr`, is better."""
    return old - new if metric.rpartition(".")[2] in SMALLER_IS_BETTER else new - old


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


class Alarm(Config):
    """A training failure without an error, and the optimizer step of its detection."""

    name: str
    step: int

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')} at step {self.step}"


class TrainResult(Result):
    steps: int
    """Number of optimizer steps."""
    losses: dict[str, float]
    """Last value of each loss by name."""
    curves: dict[str, list[Point]]
    """Points of each loss by name."""
    alarms: tuple[Alarm, ...] = ()
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    images_per_second: float = 0.0
    """Samples of all processes per second of this attempt's steps, waits for data included; 0 if it made none."""

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


class FrozenResult(Result):
    """The frozen models of BLIP-2 that were made; empty where the stages name others' models."""

    sources: dict[str, str] = Field(default_factory=dict)
    """Place of each model by name: `vision`, `opt`, `t5`."""
    digests: dict[str, str] = Field(default_factory=dict)
    """Digest of each model's weights and configuration by name."""
    curves: dict[str, list[Point]] = Field(default_factory=dict)
    """Points of each model's loss by name."""

    @classmethod
    def verb(cls) -> str:
        return "make-frozen"

    def compared(self) -> dict[str, float]:
        losses = {name: curve[-1][1] for name, curve in self.curves.items() if curve}
        return dict(numbers({"losses": losses})) | super().compared()


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


class WriteTarsResult(Result):
    images: int
    texts: int
    samples: int
    tars: int
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    pattern: str
    """Names of the tar files as a webdataset pattern."""


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

    @classmethod
    def verb(cls) -> str:
        return "ingest --dry-run"


class LabelResult(Result):
    """What captioning or matching wrote."""

    images: int
    rows: int
    """Number of captions, or of scored texts."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of images without results by reason."""
    file: str
    """The path of the table."""


class EvaluationResult(Result):
    split: str
    scores: dict[str, dict[str, float]]
    """Scores by task and name, as `EvaluableTask.score` yields them."""
    baseline: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Scores by task and name of who sees no image, where there are some: of the most frequent answer, of a random
    order, of the caption of another image."""
    described: dict[str, str] = Field(default_factory=dict)
    """Captions of the first images by sample id."""
    not_scored: dict[str, str] = Field(default_factory=dict)
    """Scores that were asked for and could not be computed, with the reason."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""

    @classmethod
    def verb(cls) -> str:
        return "evaluate"

    def notes(self) -> list[str]:
        return list(self.not_scored.values())

    def named(self) -> dict[str, float]:
        """Returns all scores by names such as `retrieval.mean`, including those that are not finite."""
        return {f"{task}.{name}": value for task, scores in self.scores.items() for name, value in scores.items()}

    def compared(self) -> dict[str, float]:
        return dict(numbers(self.scores)) | {"rejected": sum(self.rejected.values())} | super().compared()


class FetchResult(Result):
    source: str
    """Where the model came from."""
    task: str
    """The task that it was trained for."""
    first: bool = False
    """Whether it is the first model of the bootstrap that made what the source names."""


class DownstreamResult(Result):
    """The outcome of each downstream task."""

    scores: dict[str, dict[str, float]]
    """Scores by task and name, of video tasks too."""
    first: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same of models that were fine-tuned from the first model of the bootstrap, before CapFilt."""
    baseline: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same of who sees no image, as `EvaluationResult.baseline`."""
    registered: dict[str, bool] = Field(default_factory=dict)
    """Whether the model of each item of `tasks` is the champion of its name."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """The gate's reason by item of `tasks`."""
    curves: dict[str, dict[str, list[Point]]] = Field(default_factory=dict)
    """Points of each training loss by item of `tasks` and name."""
    seconds_by_task: dict[str, float] = Field(default_factory=dict)
    """Seconds of all steps of each item of `tasks`."""

    def notes(self) -> list[str]:
        return [f"{task}: {reason}" for task, reason in self.reasons.items()]

    def compared(self) -> dict[str, float]:
        first = {f"{name}_first": value for name, value in numbers(self.first)}
        return dict(numbers(self.scores)) | first | {"registered": sum(self.registered.values())} | super().compared()


class GateResult(Result):
    registered: bool
    version: int | None = None
    """Version in the model registry."""
    reason: str
    """Reason for the registration or rejection of the model, in one sentence."""

    def notes(self) -> list[str]:
        return [self.reason]

    @classmethod
    def verb(cls) -> str:
        return "register"

    def compared(self) -> dict[str, float]:
        return {"registered": self.registered, **super().compared()}


class MirroredModel(Config):
    """A model of the hub in a mirror."""

    revision: str
    """The commit on the hub."""
    settings: tuple[str, ...]
    """The settings that name it."""
    files: dict[str, str]
    """SHA-256 by file."""


class FetchWeightsResult(Result):
    store: str
    """The mirror."""
    models: dict[str, MirroredModel]
    """By name on the hub."""
    fetched_bytes: int
    """Bytes that were not in the mirror before."""

    @classmethod
    def verb(cls) -> str:
        return "fetch-weights"
