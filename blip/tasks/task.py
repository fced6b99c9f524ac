"""The interface of a task: to the training loop, and to the evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import Config, ConfigError
from blip.data.sample import BadSample, Sample
from blip.data.tokenizer import Tokenizer
from blip.models.med import MEDConfig
from blip.models.weights.load import Allowed

Model = TypeVar("Model", bound=nn.Module)
View = Callable[[bytes], Tensor]
"""An encoded image, to what of it is learnt from, uint8 `(3, H, W)`; each call may look at another part."""


class TaskSettings(Config, ABC):
    """The settings of a task, and how its model and the task itself are built from them."""

    TRAINING: ClassVar[frozenset[str]] = frozenset()
    """Keys that only training reads: a model folder leaves them out, so that they can change."""
    TOWERS: ClassVar[tuple[str, ...]]
    """The model's stacks of layers, by the beginning of their parameters' names."""
    DIFFERENCES: ClassVar[Allowed]
    """How a checkpoint of pre-training may differ from the model: parts that the task drops, and parts that it adds."""

    @abstractmethod
    def build_model(self, model: MEDConfig) -> nn.Module:
        """Returns the model that the task trains, with the parts that it needs."""

    @abstractmethod
    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Task":
        """Returns the task around a model of `build_model` whose weights are loaded: a teacher starts as their copy."""

    @abstractmethod
    def text_tokens(self) -> dict[str, int]:
        """Returns the most tokens of each kind of text, by the setting that says so."""

    def check_generation(self, positions: int) -> None:
        """Raises ConfigError where what the task writes may be longer than the model's positions."""

    def check_text_lengths(self, model: MEDConfig) -> None:
        """Raises ConfigError where the task's texts may be longer than the model's positions."""
        positions = model.text.positions
        for name, tokens in self.text_tokens().items():
            if tokens > positions:
                raise ConfigError(
                    f"task.{name} is {tokens}, but model.text.positions is {positions}: lower the one to {positions} "
                    "or raise the other"
                )
        self.check_generation(positions)


@dataclass(frozen=True)
class Prediction:
    """A task's prediction for one sample; its fields are JSON values and tensors, so that `vars` of it can be
    stored.
    """

    key: str
    """The sample's key."""


P = TypeVar("P", bound=Prediction)
Predict = Callable[[Batch, Sequence[int]], list[P]]
"""Maps a batch and the positions of its samples in the data set to one prediction per sample."""


class Task(nn.Module, ABC, Generic[Model]):
    """A model joined with its losses.

    Everything that must survive a restart is a parameter or a persistent buffer: teacher and queue as much as the
    student. Random draws come from torch's generators, which the loop seeds anew for each micro-batch.
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

        Returns the trained parameters that it changed; the optimizer may hold copies of them.
        """
        return []

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        """Sees all of this process's micro-batches of an optimizer step before the first of them: what is shared is
        counted here.
        """

    def after_step(self) -> None:
        """Runs after the last micro-batch of an optimizer step, on every rank: what the micro-batches left is put
        away.
        """

    def undo_step(self) -> list[nn.Parameter]:
        """Runs in place of `after_step` where the step failed: puts back what `on_step` and the micro-batches changed.

        Returns the trained parameters among that, as `on_step` does.
        """
        return []

    def prepare(self, sample: Sample, view: View, rng: np.random.Generator) -> Example:
        """What is learnt from a stored sample: a view of its image, and one of its texts. Raises BadSample where it
        lacks something.
        """
        texts = texts_of(sample)
        return Example(sample.key, view(sample.images[0]), [texts[rng.integers(len(texts))]], sample.meta, sample.id)

    @abstractmethod
    def collate(self, examples: list[Example]) -> Batch:
        """What a batch of this task is."""


class EvaluableTask(Task[Model], Generic[Model, P]):
    """A task with an evaluation: `predict` runs batch by batch on any worker, `score` once over a whole data set."""

    prediction: type[P]
    """The class of its predictions."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[P]:
        """Returns one prediction per sample, without gradient."""

    @property
    def needs_rerank(self) -> bool:
        """Whether a second pass over the samples follows once all are predicted."""
        return False

    def rerank(self, predictions: list[P]) -> Predict[P]:
        """Returns the second pass, given the predictions of all samples; its predictions replace those of the first."""
        raise NotImplementedError(f"{type(self).__name__} has no second pass")

    @abstractmethod
    def score(self, predictions: list[P]) -> Iterator[tuple[str, float]]:
        """Yields the name and the value of each score of a whole data set."""


def texts_of(sample: Sample) -> list[str]:
    """The texts of a sample that say something. Raises BadSample where there are none."""
    texts = [text for text in sample.texts if text.strip()]
    if not texts:
        raise BadSample("empty text")
    return texts
