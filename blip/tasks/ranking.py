"""Ranking images for texts and texts for images: by similarity first, and the best by matching (BLIP, section 5.1)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol

import torch
from torch import Tensor

from blip.batch import Batch, Example, Tokens
from blip.metrics.retrieval import random_order, summary
from blip.models.bert import KeysValues
from blip.tasks.candidates import Candidates, Rescored, ranks_in_parts
from blip.tasks.task import EvaluableTask, ModelT, Predict, Prediction
from blip.tasks.text import TextLengths


class RankingSettings(Protocol):
    """The settings that ranking reads."""

    @property
    def text(self) -> TextLengths: ...

    @property
    def rerank(self) -> int:
        """Number of candidates per query that ITM re-ranks."""
        ...

    @property
    def chunk(self) -> int:
        """Pairs per ITM forward pass."""
        ...


@dataclass(frozen=True, eq=False)  # comparison of tensors is elementwise
class RetrievalPrediction(Prediction):
    texts: list[str]
    """All texts of the image."""
    image: Tensor
    """Image feature `(E,)`, or `(Q, E)` of a model that compares an image by its best query."""
    text: Tensor
    """Text features, `(T, E)`."""
    near: Tensor | None = None
    """Positions, among the texts of all samples, of the texts that ITM scores, `(C,)`, int32; set by re-ranking."""
    chosen: Tensor | None = None
    """Whether each of these texts is among the image's candidates, and the image among the text's, `(2, C)`, bool."""
    logits: Tensor | None = None
    """ITM logits of these texts, `(C,)`; set by re-ranking."""


class Ranking(EvaluableTask[ModelT, RetrievalPrediction], Generic[ModelT]):
    """A task that ranks by features, and then re-ranks the best by matching."""

    prediction = RetrievalPrediction
    cfg: RankingSettings

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Returns the tokens `(B, N, D)` of a batch's images."""

    @abstractmethod
    def feature(self, tokens: Tensor) -> Tensor:
        """Maps tokens of images `(B, N, D)` to unit vectors `(B, E)`, or `(B, Q, E)` one for each query."""

    @abstractmethod
    def text_feature(self, text: Tokens) -> Tensor:
        """Maps texts to unit vectors `(B, E)`."""

    @abstractmethod
    def keys_values(self, tokens: Tensor) -> list[KeysValues]:
        """Maps tokens of images `(B, N, D)` to cross-attention keys and values, which serve all texts."""

    @abstractmethod
    def match_logits(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Returns the ITM logits `(B, 2)` of texts and images, column 1 for a match."""

    def encode_texts(self, texts: list[str]) -> Tokens:
        """Cleans and encodes texts, in evaluation and filtering as in training."""
        return self.cfg.text.encode(texts, self.tokenizer)

    def collate(self, examples: list[Example]) -> Batch:
        return Batch.of(examples, self.encode_texts([e.texts[0] for e in examples]), texts=[e.texts for e in examples])

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[RetrievalPrediction]:
        """Returns the features of each image and of all its texts."""
        images = self.feature(self.encode(batch)).cpu()
        predictions = []
        for key, texts, image in zip(batch.keys, batch.extra["texts"], images, strict=True):
            text = self.text_feature(self.encode_texts(texts).to(batch.images.device)).cpu()
            predictions.append(RetrievalPrediction(key, texts, image.clone(), text))  # a view would keep its batch
        return predictions

    @property
    def needs_rerank(self) -> bool:
        return self.cfg.rerank > 0

    def rerank(self, predictions: list[RetrievalPrediction]) -> Predict[RetrievalPrediction]:
        """Returns the second pass: ITM logits of each image with the best candidates by ITC (BLIP, section 5.1).

        A pair is a candidate if the text is among the image's best texts, or the image among the text's best images.
        The second pass raises ValueError if a batch's samples are not those of the first pass.
        """
        candidates = Candidates(*features(predictions), self.cfg.rerank)
        texts = self.encode_texts([t for p in predictions for t in p.texts])
        lengths = texts.mask.sum(1)

        @torch.no_grad()
        def predict_logits(batch: Batch, positions: Sequence[int]) -> list[RetrievalPrediction]:
            first = [predictions[position] for position in positions]
            if batch.keys != [p.key for p in first]:
                raise ValueError("re-ranking: the samples are not those of the first pass")
            images = self.encode(batch)
            found = []
            for prediction, position, image in zip(first, positions, images, strict=True):
                near, chosen = candidates.of(position)
                order = lengths[near].argsort(stable=True)  # texts of one length need no padding
                logits = torch.empty(len(near))
                logits[order] = self.match_one(image, texts[near[order]], lengths[near[order]])
                found.append(replace(prediction, near=near, chosen=chosen, logits=logits))
            return found

        return predict_logits

    def match_one(self, image: Tensor, texts: Tokens, lengths: Tensor) -> Tensor:
        """Returns the ITM logits `(T,)` of one image's tokens `(N, D)` and texts, of which `lengths` tokens are real.

        Keys and values of the image are computed once for all texts.
        """
        cross = self.keys_values(image[None])
        logits = []
        for first in range(0, len(lengths), self.cfg.chunk):
            rows = slice(first, first + self.cfg.chunk)
            longest = int(lengths[rows].max())
            part = Tokens(texts.ids[rows, :longest], texts.mask[rows, :longest]).to(image.device)
            logits.append(self.match_logits(part, cross)[:, 1].float().cpu())
        return torch.cat(logits)

    def score(self, predictions: list[RetrievalPrediction]) -> Iterator[tuple[str, float]]:
        """Yields R@1, 5, 10 in percent of text retrieval (`tr*`) and image retrieval (`ir*`), and their mean.

        With re-ranking, the score of each query's best `rerank` candidates by ITC is the ITM logit plus the similarity;
        all others rank below them.
        """
        text_ranks, image_ranks = self.ranks(predictions)
        yield from summary(text_ranks, image_ranks).items()

    def baseline(self, predictions: list[RetrievalPrediction]) -> Iterator[tuple[str, float]]:
        """As `score`, of a random order, on average."""
        yield from random_order([len(p.texts) for p in predictions]).items()

    def ranks(self, predictions: list[RetrievalPrediction]) -> tuple[Tensor, Tensor]:
        """Returns the rank, from 0, of each image's best own text `(I,)`, and of each text's own image `(T,)`."""
        images, texts = features(predictions)
        numbers = torch.arange(len(images))
        owner = numbers.repeat_interleave(torch.tensor([len(p.texts) for p in predictions]))
        by_image, by_text = rescored(predictions) if self.needs_rerank else (None, None)
        return (
            ranks_in_parts(images, texts, numbers, owner, by_image),
            ranks_in_parts(texts, images, owner, numbers, by_text),
        )


def features(predictions: list[RetrievalPrediction]) -> tuple[Tensor, Tensor]:
    """Returns the features of all images `(I, E)` and of all texts `(T, E)`."""
    return torch.stack([p.image for p in predictions]), torch.cat([p.text for p in predictions])


def rescored(predictions: list[RetrievalPrediction]) -> tuple[Rescored, Rescored]:
    """Returns the logits of the pairs that images chose, by image, and of those that texts chose, by text."""
    pairs = [(p.near, p.logits, p.chosen) for p in predictions]
    near = torch.cat([near for near, _, _ in pairs if near is not None])
    logits = torch.cat([logits for _, logits, _ in pairs if logits is not None])
    by_image, by_text = torch.cat([chosen for _, _, chosen in pairs if chosen is not None], 1)
    sizes = torch.tensor([0 if near is None else len(near) for near, _, _ in pairs])
    images = torch.arange(len(pairs), dtype=near.dtype).repeat_interleave(sizes)
    return (
        Rescored.of(images[by_image], near[by_image], logits[by_image]),
        Rescored.of(near[by_text], images[by_text], logits[by_text]),
    )
