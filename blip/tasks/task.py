"""What the training loop and the evaluation know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import Config
from blip.data.sample import BadSample, Sample
from blip.data.tokenizer import Tokenizer

Model = TypeVar("Model", bound=nn.Module)
Predict = Callable[[Batch, Sequence[int]], list[dict[str, Any]]]
"""A batch and the positions of its samples in the data set, to a prediction of each."""
View = Callable[[bytes], Tensor]
"""An encoded image, to what of it is learnt from, uint8 `(3, H, W)`; each call may look at another part."""


class TaskSettings(Config):
    """The settings of a task."""

    TRAINING: ClassVar[frozenset[str]] = frozenset()
    """Keys that only training reads: a model folder leaves them out, so that they can change."""


class Task(nn.Module, ABC, Generic[Model]):
    """A model joined with its losses, its predictions and its scores.

    Everything that must survive a restart is a parameter or a persistent buffer: teacher and queue as much as the student.
    Random draws come from torch's generators, which the loop seeds anew for each micro-batch.
    """

    model: Model
    """What is trained and used afterwards; teacher and queue stand beside it."""
    tokenizer: Tokenizer
    momentum_teacher: ClassVar[bool] = False
    """Whether a part of the module follows another by a moving average, which needs whole weights on every process."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses of a micro-batch, 0-dim; their sum is minimised."""

    def on_step(self, step: int, steps_per_epoch: int) -> list[nn.Parameter]:  # noqa: ARG002
        """Runs before the first micro-batch of optimizer step `step` (from 0): the teacher follows, ramps rise.

        Gives the trained parameters that it changed, which the optimizer may hold a copy of.
        """
        return []

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        """Sees all of this process's micro-batches of an optimizer step before the first of them: what is shared is counted here."""

    def after_step(self) -> None:
        """Runs after the last micro-batch of an optimizer step, on every rank: what the micro-batches left is put away."""

    def undo_step(self) -> list[nn.Parameter]:
        """Runs in place of `after_step` where the step failed: puts back what `on_step` and the micro-batches changed.

        Returns the trained parameters among that, as `on_step` does.
        """
        return []

    def prepare(self, sample: Sample, view: View, rng: np.random.Generator) -> Example:
        """What is learnt from a stored sample: a view of its image, and one of its texts. Raises BadSample where it lacks something."""
        texts = texts_of(sample)
        return Example(sample.key, view(sample.images[0]), [texts[rng.integers(len(texts))]], sample.meta, sample.id)

    @abstractmethod
    def collate(self, examples: list[Example]) -> Batch:
        """What a batch of this task is."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        """One prediction per sample, under its `key`, without gradient."""

    @property
    def needs_rerank(self) -> bool:
        """Whether a second pass over the samples follows when all are predicted."""
        return False

    def rerank(self, predictions: list[dict[str, Any]]) -> Predict:
        """Returns the second pass, which knows the predictions of all samples; what it predicts joins a sample's first prediction."""
        raise NotImplementedError(f"{type(self).__name__} predicts a sample once")

    @abstractmethod
    def score(self, predictions: list[dict[str, Any]]) -> dict[str, float]:
        """Named scores of the predictions for a whole data set."""


def texts_of(sample: Sample) -> list[str]:
    """The texts of a sample that say something. Raises BadSample where there are none."""
    texts = [text for text in sample.texts if text.strip()]
    if not texts:
        raise BadSample("empty text")
    return texts
