"""The interface of a task to the training loop and to evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import Config, ConfigError
from blip.data.tokenizer import Tokenizer
from blip.models.blip2 import Blip2Config
from blip.models.med import MEDConfig
from blip.models.weights.load import Allowed
from blip.shards.sample import BadSample, Sample

ModelT = TypeVar("ModelT", bound=nn.Module)
ReadImage = Callable[[bytes], Tensor]
"""Maps an encoded image to a view of it, uint8 `(3, H, W)`; in training, views are random."""


class TaskSettings(Config, ABC):
    """The settings of a task, and the construction of its model and of the task."""

    MODEL: ClassVar[type[MEDConfig] | type[Blip2Config]] = MEDConfig
    """The class of the model's settings."""
    TRAINING: ClassVar[frozenset[str]] = frozenset()
    """Settings that only training reads; a model folder omits them, so that they can change."""
    SCORING: ClassVar[frozenset[str]] = frozenset()
    """Settings that change scores alone: predictions of an earlier evaluation serve if they differ."""
    TOWERS: ClassVar[tuple[str, ...]]
    """The model's towers, as prefixes of their parameters' names."""
    TRAINED_ON: ClassVar[str] = "a text"
    """What `check_trained` looks for in a sample."""
    SCORED_BY: ClassVar[str] = "a text"
    """What `check_scored` looks for in a sample."""
    DIFFERENCES: ClassVar[Allowed]
    """Allowed differences between a pre-trained checkpoint and the model: parts that the task removes or adds."""

    @abstractmethod
    def build_model(self, model: Any) -> nn.Module:
        """Returns the model with the parts that the task needs, randomly initialised, from settings of class `MODEL`.

        Its frozen parts have their weights.
        """

    def check_model(self, model: MEDConfig | Blip2Config) -> None:
        """Raises ConfigError if a model's settings are of another class than the task's models have."""
        if not isinstance(model, self.MODEL):
            wanted, kind = self.MODEL.model_fields["type"].default, type(self).model_fields["type"].default
            raise ConfigError(
                f"model.type is {model.type}, but a model for {kind} is of type {wanted}: set model.type={wanted} with "
                "its settings, or another task"
            )

    def model_from(self, model: MEDConfig | Blip2Config) -> nn.Module:
        """Returns `build_model` of settings of any class. Raises ConfigError if they are of another than `MODEL`."""
        self.check_model(model)
        return self.build_model(model)

    @abstractmethod
    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Task":
        """Returns the task around a model from `build_model`, after loading its weights: a teacher starts as a copy."""

    def check_trained(self, sample: Sample) -> None:
        """Raises BadSample if a sample, whatever its images show, lacks what training learns from."""
        texts_of(sample)

    def check_scored(self, sample: Sample) -> None:
        """Raises BadSample if a sample, whatever its images show, has nothing to score or to send to a server."""
        texts_of(sample)

    @abstractmethod
    def text_tokens(self) -> dict[str, int]:
        """Returns the maximum number of tokens of each kind of text, by the name of its setting."""

    def check_generation(self, positions: int) -> None:
        """Raises ConfigError if generated texts may exceed the model's positions."""

    def check_text_lengths(self, model: MEDConfig | Blip2Config) -> None:
        """Raises ConfigError if the task's texts may exceed the model's positions."""
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
    """A task's prediction for one sample.

    Its fields are JSON values and tensors, so that `vars` of it can be serialised.
    """

    key: str
    """The sample's key."""


P = TypeVar("P", bound=Prediction)
Predict = Callable[[Batch, Sequence[int]], list[P]]
"""Maps a batch and the positions of its samples in the data set to one prediction per sample."""


class Task(nn.Module, ABC, Generic[ModelT]):
    """A model with its losses.

    All state that a restart needs is a parameter or a persistent buffer, including teacher and queue. Random draws use
    torch's generators, which the training loop seeds for each micro-batch.
    """

    model: ModelT
    """The trained model, without training state such as teacher and queue."""
    tokenizer: Tokenizer
    momentum_teacher: ClassVar[bool] = False
    """Whether the task has a momentum teacher, which needs complete weights on every process."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the named losses of a micro-batch, 0-dim; training minimises their sum."""

    def on_step(self, step: int, steps_per_epoch: int) -> list[nn.Parameter]:  # noqa: ARG002
        """Called before the first micro-batch of optimizer step `step`, counted from 0; updates teacher and ramps.

        Returns the trained parameters that it changed; the optimizer may hold copies of them.
        """
        return []

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        """Called with all of this process's micro-batches of an optimizer step, before the first `forward`.

        Computes values shared by the micro-batches, such as token counts.
        """

    def after_step(self) -> None:
        """Called on every rank after the last micro-batch of an optimizer step; stores or clears intermediate state."""

    def undo_step(self) -> list[nn.Parameter]:
        """Called instead of `after_step` if the step failed; restores the state before `on_step`.

        Returns the trained parameters that it changed, as `on_step` does.
        """
        return []

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns the training example of a stored sample: a view of its image and one of its texts.

        Raises BadSample if the sample lacks a required part.
        """
        texts = texts_of(sample)
        return Example(sample.key, view(sample.images[0]), [texts[rng.integers(len(texts))]], sample.meta, sample.id)

    @abstractmethod
    def collate(self, examples: list[Example]) -> Batch:
        """Returns the batch of a list of examples."""


class EvaluableTask(Task[ModelT], Generic[ModelT, P]):
    """A task with an evaluation: `predict` runs per batch on any worker, `score` once over the whole data set."""

    prediction: type[P]
    """The class of the task's predictions."""

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        """Returns the example of a sample in evaluation: its whole image and all its texts.

        Raises BadSample if the sample lacks a required part; what only training requires may be missing.
        """
        return Example(sample.key, view(sample.images[0]), texts_of(sample), sample.meta, sample.id)

    @abstractmethod
    def predict(self, batch: Batch) -> list[P]:
        """Returns one prediction per sample, without gradients."""

    @property
    def needs_rerank(self) -> bool:
        """Whether `rerank` runs after all samples are predicted."""
        return False

    def rerank(self, predictions: list[P]) -> Predict[P]:
        """Returns the second pass, given the predictions of all samples; its predictions replace the first ones."""
        raise NotImplementedError(f"{type(self).__name__} has no second pass")

    @abstractmethod
    def score(self, predictions: list[P]) -> Iterator[tuple[str, float]]:
        """Yields the name and value of each score over the whole data set."""

    def baseline(self, predictions: list[P]) -> Iterator[tuple[str, float]]:  # noqa: ARG002
        """Yields scores of `score` that need no look at an image: of the most frequent answer, of a random order.

        None by default.
        """
        return iter(())

    def not_scored(self, predictions: list[P]) -> dict[str, str]:  # noqa: ARG002
        """Returns the names of scores that cannot be computed, with the reason."""
        return {}

    def submission(self, predictions: list[P]) -> dict[str, Any]:  # noqa: ARG002
        """Returns the files that the data set's server takes, JSON values by file name; none if it takes none.

        A text is written as it is, any other value as JSON.
        """
        return {}


def frames_of(sample: Sample, view: ReadImage) -> Tensor:
    """Returns the views of all images of a sample, `(F, 3, H, W)`, such as the frames of a video."""
    return torch.stack([view(image) for image in sample.images])


def texts_of(sample: Sample) -> list[str]:
    """Returns the non-empty texts of a sample. Raises BadSample if there are none."""
    texts = [text for text in sample.texts if text.strip()]
    if not texts:
        raise BadSample("empty text")
    return texts
