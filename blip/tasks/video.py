"""Video tasks, with frames in the place of an image: their tokens are concatenated (BLIP, section 5.6)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from blip.batch import Example
from blip.data.tokenizer import Tokenizer
from blip.metrics.retrieval import median_rank, summary
from blip.models.med import MED
from blip.models.vqa import VQAModel
from blip.shards.sample import Sample
from blip.tasks.ranking import RetrievalPrediction
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.task import ReadImage, frames_of
from blip.tasks.vqa import VQA, VQAConfig, VQAPrediction


class VideoRetrievalConfig(RetrievalConfig):
    type: Literal["video_retrieval"] = "video_retrieval"  # pyright: ignore[reportIncompatibleVariableOverride]
    rerank: int = 128

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "VideoRetrieval":
        assert isinstance(model, MED)
        return VideoRetrieval(self, model, tokenizer)


class VideoRetrieval(Retrieval):
    """Retrieval of videos by texts, and of texts by videos, with a model of images; training reads first frames."""

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        return replace(super().whole(sample, view), image=frames_of(sample, view))

    def feature(self, tokens: Tensor) -> Tensor:
        """Maps tokens of all frames `(B, F N, D)` to unit vectors `(B, E)`: the mean of the frames' features."""
        assert self.model.visual_encoder.pos_embed is not None
        frames = tokens.unflatten(1, (-1, self.model.visual_encoder.pos_embed.shape[1]))
        features = self.model.image_feature(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return F.normalize(features.mean(1), dim=-1)

    def score(self, predictions: list[RetrievalPrediction]) -> Iterator[tuple[str, float]]:
        """Yields R@1, 5, 10 of texts (`tr*`) and of videos (`ir*`, text to video), their mean, and the median rank of a
        text's video, from 1.
        """
        text_ranks, video_ranks = self.ranks(predictions)
        yield from summary(text_ranks, video_ranks).items()
        yield "median_rank", median_rank(video_ranks)

    def baseline(self, predictions: list[RetrievalPrediction]) -> Iterator[tuple[str, float]]:
        yield from super().baseline(predictions)
        yield "median_rank", (len(predictions) + 1) / 2


class VideoQAConfig(VQAConfig):
    type: Literal["video_qa"] = "video_qa"  # pyright: ignore[reportIncompatibleVariableOverride]

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "VideoQA":
        assert isinstance(model, VQAModel)
        return VideoQA(self, model, tokenizer)


class VideoQA(VQA):
    """Answers to questions about videos, with a model of questions about images."""

    def prepare(self, sample: Sample, view: ReadImage, rng: np.random.Generator) -> Example:
        return replace(super().prepare(sample, view, rng), image=frames_of(sample, view))

    def whole(self, sample: Sample, view: ReadImage) -> Example:
        return replace(super().whole(sample, view), image=frames_of(sample, view))

    def score(self, predictions: list[VQAPrediction]) -> Iterator[tuple[str, float]]:
        """Yields the share of answers, in percent, that are the published one, in lower case."""
        known = [p for p in predictions if p.said]
        if known:
            right = sum(p.answer.lower().strip() in [said.lower().strip() for said in p.said] for p in known)
            yield "accuracy", 100 * right / len(known)
