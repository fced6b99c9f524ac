"""NLVR2: classifies whether a statement about two images is true (BLIP, section 5.4)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.data.transforms import normalise
from blip.models.med import MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.weights.load import HEADS, TRAINING_STATE, Allowed
from blip.shards.sample import BadSample, Sample
from blip.tasks.task import EvaluableTask, Prediction, ReadImage, TaskSettings, frames_of, texts_of
from blip.tasks.text import TextLengths


class NLVRConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"swap"})
    TOWERS: ClassVar = ("visual_encoder", "text_encoder")
    TRAINED_ON: ClassVar = "two images and a statement with its `label`, true or false, in its json"
    SCORED_BY: ClassVar = TRAINED_ON
    DIFFERENCES: ClassVar = Allowed(
        unused=(*TRAINING_STATE, *HEADS, "text_decoder.*", "lm_head.*"),
        missing=("text_encoder.*.cross_attention.merge.*", "cls_head.*"),
    )
    type: Literal["nlvr"] = "nlvr"
    text: TextLengths = TextLengths(words=40, tokens=64, pad="longest")
    swap: float = Field(default=0.5, ge=0, le=1)
    """Probability that training exchanges the two images, and the words left and right of the statement."""

    def build_model(self, model: MEDConfig) -> NLVRModel:
        return NLVRModel(model)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "NLVR":
        assert isinstance(model, NLVRModel)
        return NLVR(self, model, tokenizer)

    def check_trained(self, sample: Sample) -> None:
        super().check_trained(sample)
        check_pair(sample)

    def check_scored(self, sample: Sample) -> None:
        self.check_trained(sample)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}


@dataclass(frozen=True)
class NLVRPrediction(Prediction):
    answer: int
    """1 for true, 0 for false."""
    label: int
    """The correct answer."""
    identifier: str
    """The statement's name in the data set."""


class NLVR(EvaluableTask[NLVRModel, NLVRPrediction]):
    """Trains a model to classify statements about two images as true or false."""

    prediction = NLVRPrediction

    def __init__(self, cfg: NLVRConfig, model: NLVRModel, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        """Returns the example of a statement about two images, the left one first, or both exchanged.

        The metadata contain its `label`, true or false. Raises BadSample if the label is invalid or there are not two
        images.
        """
        example = self.whole(sample, view)
        text = example.texts[rng.integers(len(example.texts))]
        if rng.random() < self.cfg.swap:
            return replace(example, image=example.image.flip(0), texts=[exchange_sides(text)])
        return replace(example, texts=[text])

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        check_pair(sample)
        return Example(sample.key, frames_of(sample, view), texts_of(sample), sample.meta, sample.id)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch of statements about two images each.

        The image of an example is a pair, `(2, 3, H, W)`, the left one first; its metadata contain the `label`.
        """
        texts = [clean_caption(e.texts[0], self.cfg.text.words) for e in examples]
        labels = torch.tensor([int(e.meta["label"]) for e in examples])
        text = self.tokenizer.encode(texts, self.cfg.text.tokens, self.cfg.text.pad)
        identifiers = [str(e.meta.get("identifier", e.key)) for e in examples]
        return Batch.of(examples, text, labels=labels, identifiers=identifiers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy loss; `extra["labels"]` are the labels `(B,)`, 1 for true."""
        return {"nlvr": F.cross_entropy(self.logits(batch).float(), batch.extra["labels"])}

    def logits(self, batch: Batch) -> Tensor:
        assert batch.text is not None
        return self.model(normalise(batch.images), batch.text)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[NLVRPrediction]:
        answers = self.logits(batch).argmax(1).tolist()
        labels = batch.extra["labels"].tolist()
        rows = zip(batch.keys, answers, labels, batch.extra["identifiers"], strict=True)
        return [NLVRPrediction(*row) for row in rows]

    def score(self, predictions: list[NLVRPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the accuracy in percent."""
        yield "accuracy", 100 * sum(p.answer == p.label for p in predictions) / len(predictions)

    def baseline(self, predictions: list[NLVRPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the accuracy in percent of the more frequent answer."""
        true = sum(p.label for p in predictions)
        yield "accuracy", 100 * max(true, len(predictions) - true) / len(predictions)

    def submission(self, predictions: list[NLVRPrediction]) -> dict[str, str]:
        """Returns the table that the data set's evaluation takes: a line is `IDENTIFIER,True` or `IDENTIFIER,False`."""
        lines = [f"{p.identifier},{bool(p.answer)}\n" for p in predictions]
        return {"nlvr2_predictions.csv": "".join(lines)}


def check_pair(sample: Sample) -> None:
    """Raises BadSample unless a sample has two images and a label."""
    if len(sample.images) != 2:
        raise BadSample("not two images")
    label = sample.meta.get("label")
    if not isinstance(label, int) or label not in (0, 1):
        raise BadSample("label is neither true nor false")


SIDES = {"left": "right", "right": "left"}


def exchange_sides(text: str) -> str:
    """Returns a statement about a pair of images whose order is reversed: left and right exchanged, in any case."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        side = SIDES[word.lower()]
        return side.upper() if word.isupper() else side.capitalize() if word[0].isupper() else side

    return re.sub(r"\b(?:left|right)\b", other, text, flags=re.IGNORECASE)
