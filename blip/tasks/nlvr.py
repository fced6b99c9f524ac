"""NLVR2: classifies whether a statement about two images is true (BLIP, section 5.4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.data.transforms import normalise
from blip.models.med import MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.weights.load import HEADS, TRAINING_STATE, Allowed
from blip.shards.sample import BadSample, Sample
from blip.tasks.task import EvaluableTask, Prediction, TaskSettings, View, texts_of
from blip.tasks.text import TextLengths


class NLVRConfig(TaskSettings):
    TOWERS: ClassVar = ("visual_encoder", "text_encoder")
    DIFFERENCES: ClassVar = Allowed(
        unused=(*TRAINING_STATE, *HEADS, "text_decoder.*", "lm_head.*"),
        missing=("text_encoder.*.cross_attention.merge.*", "cls_head.*"),
    )
    type: Literal["nlvr"] = "nlvr"
    text: TextLengths = TextLengths(words=40, tokens=64, pad="longest")

    def build_model(self, model: MEDConfig) -> NLVRModel:
        return NLVRModel(model)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "NLVR":
        assert isinstance(model, NLVRModel)
        return NLVR(self, model, tokenizer)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}


@dataclass(frozen=True)
class NLVRPrediction(Prediction):
    answer: int
    """1 for true, 0 for false."""
    label: int
    """The correct answer."""


class NLVR(EvaluableTask[NLVRModel, NLVRPrediction]):
    """Trains a model to classify statements about two images as true or false."""

    prediction = NLVRPrediction

    def __init__(self, cfg: NLVRConfig, model: NLVRModel, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer

    def prepare(self, sample: Sample, view: View, rng: np.random.Generator) -> Example:
        """Returns the example of a statement about two images, the left one first.

        The metadata contain its `label`, true or false. Raises BadSample if the label is invalid or there are not two
        images.
        """
        if len(sample.images) != 2:
            raise BadSample("not two images")
        label = sample.meta.get("label")
        if not isinstance(label, int) or label not in (0, 1):
            raise BadSample("label is neither true nor false")
        texts = texts_of(sample)
        images = torch.stack([view(image) for image in sample.images])
        return Example(sample.key, images, [texts[rng.integers(len(texts))]], sample.meta, sample.id)

    def collate(self, examples: list[Example]) -> Batch:
        """Returns a batch of statements about two images each.

        The image of an example is a pair, `(2, 3, H, W)`, the left one first; its metadata contain the `label`.
        """
        texts = [clean_caption(e.texts[0], self.cfg.text.words) for e in examples]
        labels = torch.tensor([int(e.meta["label"]) for e in examples])
        return Batch.of(examples, self.tokenizer.encode(texts, self.cfg.text.tokens, self.cfg.text.pad), labels=labels)

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
        return [NLVRPrediction(*row) for row in zip(batch.keys, answers, labels, strict=True)]

    def score(self, predictions: list[NLVRPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the accuracy in percent."""
        yield "accuracy", 100 * sum(p.answer == p.label for p in predictions) / len(predictions)
