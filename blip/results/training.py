"""Results of the verbs that train."""

from typing import Any

from pydantic import Field

from blip.config import Config
from blip.results.result import Result, numbers

Point = tuple[int, float]
"""An optimizer step and a value."""


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
    scores: dict[str, list[Point]] = Field(default_factory=dict)
    """Points of each score that was measured while training, by name."""
    alarms: tuple[Alarm, ...] = ()
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected samples by reason."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    images_per_second: float = 0.0
    """Samples of all processes per second of this attempt's steps, waits for data included; 0 if it made none."""

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
