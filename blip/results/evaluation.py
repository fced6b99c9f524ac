"""Results of judging models: scores, the gate's decision, and the outcome of the downstream tasks."""

from pydantic import Field

from blip.results.result import Result, numbers
from blip.results.training import Point

SMALLER_IS_BETTER = ("mean_rank", "median_rank")
"""Scores of which a smaller one is better: their gain is what they are smaller by."""


def gain(metric: str, new: float, old: float) -> float:
    """Returns by how much a score, such as `dialog.mrr`, is better."""
    return old - new if metric.rpartition(".")[2] in SMALLER_IS_BETTER else new - old


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

    def named(self) -> dict[str, float]:
        """Returns all scores by names such as `retrieval.mean`, including those that are not finite."""
        return {f"{task}.{name}": value for task, scores in self.scores.items() for name, value in scores.items()}

    def compared(self) -> dict[str, float]:
        return dict(numbers(self.scores)) | {"rejected": sum(self.rejected.values())} | super().compared()


class GateResult(Result):
    registered: bool
    version: int | None = None
    """Version in the model registry."""
    reason: str
    """Reason for the registration or rejection of the model, in one sentence."""

    @classmethod
    def verb(cls) -> str:
        return "register"

    def compared(self) -> dict[str, float]:
        return {"registered": self.registered, **super().compared()}


class DownstreamResult(Result):
    """The outcome of each downstream task."""

    scores: dict[str, dict[str, float]]
    """Scores by task and name, of video tasks too."""
    first: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same of models that were fine-tuned from the first model of the bootstrap, before CapFilt."""
    baseline: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same of who sees no image, as `EvaluationResult.baseline`."""
    registered: dict[str, bool] = Field(default_factory=dict)
    """Whether the model of each item of `tasks` is the champion of its name; those to be compared are left out."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """The gate's reason by item of `tasks`."""
    curves: dict[str, dict[str, list[Point]]] = Field(default_factory=dict)
    """Points of each training loss by item of `tasks` and name."""
    seconds_by_task: dict[str, float] = Field(default_factory=dict)
    """Seconds of all steps of each item of `tasks`."""

    def compared(self) -> dict[str, float]:
        first = {f"{name}_first": value for name, value in numbers(self.first)}
        return dict(numbers(self.scores)) | first | {"registered": sum(self.registered.values())} | super().compared()
