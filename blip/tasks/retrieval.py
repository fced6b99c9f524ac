"""Image-text retrieval with ITC and ITM; the task of the filter (BLIP, sections 3.3 and 5.1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.data.transforms import normalise
from blip.metrics.retrieval import summary
from blip.models.bert import KeysValues
from blip.models.med import MED, MEDConfig
from blip.models.weights.load import TRAINING_STATE, Allowed
from blip.tasks.alignment import Alignment, AlignmentConfig, check_padding
from blip.tasks.candidates import Candidates, Rescored, ranks_in_parts
from blip.tasks.task import EvaluableTask, Predict, Prediction, TaskSettings
from blip.tasks.text import TextLengths


class RetrievalConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"alignment"})
    TOWERS: ClassVar = ("visual_encoder", "text_encoder")
    DIFFERENCES: ClassVar = Allowed(unused=(*TRAINING_STATE, "text_decoder.*", "lm_head.*"))
    type: Literal["retrieval"] = "retrieval"
    alignment: AlignmentConfig = AlignmentConfig(
        same_image="positive", compare_with="student", floor=0.0, alpha_epochs=1.0
    )
    text: TextLengths = TextLengths(words=30, tokens=35, pad="max")
    rerank: int = Field(default=256, ge=0)
    """Number of candidates per query, the best by ITC, that ITM re-ranks; 0 disables re-ranking.

    The score of a candidate is the ITM logit plus the ITC similarity.
    """
    chunk: int = Field(default=64, ge=1)
    """Pairs per ITM forward pass in re-ranking."""

    @model_validator(mode="after")
    def processes_can_exchange_texts(self) -> Self:
        check_padding(self.alignment, self.text)
        return self

    def build_model(self, model: MEDConfig) -> MED:
        return MED(model, decoder=False)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Retrieval":
        assert isinstance(model, MED)
        return Retrieval(self, model, tokenizer)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}


@dataclass(frozen=True, eq=False)  # comparison of tensors is elementwise
class RetrievalPrediction(Prediction):
    texts: list[str]
    """All texts of the image."""
    image: Tensor
    """Image feature, `(E,)`."""
    text: Tensor
    """Text features, `(T, E)`."""
    near: Tensor | None = None
    """Positions, among the texts of all samples, of the texts that ITM scores, `(C,)`, int32; set by re-ranking."""
    chosen: Tensor | None = None
    """Whether each of these texts is among the image's candidates, and the image among the text's, `(2, C)`, bool."""
    logits: Tensor | None = None
    """ITM logits of these texts, `(C,)`; set by re-ranking."""


class Retrieval(EvaluableTask[MED, RetrievalPrediction]):
    """Trains a model to align and match images and texts."""

    prediction = RetrievalPrediction

    momentum_teacher = True

    def __init__(self, cfg: RetrievalConfig, model: MED, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.alignment = Alignment(cfg.alignment, model)

    def on_step(self, step: int, steps_per_epoch: int) -> list[nn.Parameter]:
        return self.alignment.on_step(self.model, step, steps_per_epoch)

    def after_step(self) -> None:
        self.alignment.after_step()

    def undo_step(self) -> list[nn.Parameter]:
        return self.alignment.undo_step()

    def tokens(self, texts: list[str]) -> Tokens:
        """Cleans and encodes texts, in evaluation and filtering as in training."""
        return self.tokenizer.encode(
            [clean_caption(t, self.cfg.text.words) for t in texts], self.cfg.text.tokens, self.cfg.text.pad
        )

    def collate(self, examples: list[Example]) -> Batch:
        return Batch.of(examples, self.tokens([e.texts[0] for e in examples]), texts=[e.texts for e in examples])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        text, ids = batch.text, batch.image_ids
        assert text is not None
        assert ids is not None
        model = self.model
        images = normalise(batch.images)
        image_tokens = model.encode_image(images)
        hidden = model.encode_text(text)
        itc, i2t, t2i = self.alignment.itc_loss(
            self.feature(image_tokens), model.text_feature(hidden), images, text, ids
        )
        cross = model.text_encoder.cross_keys_values(image_tokens)
        return {"itc": itc, "itm": self.alignment.itm_loss(model, text, image_tokens, cross, i2t, t2i, ids)}

    @torch.no_grad()
    def match(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Returns p(match) `(B,)` and cosine similarity `(B,)` of image-text pairs (BLIP, section 3.3).

        Images are uint8 `(B, 3, H, W)`, with one text each.
        """
        image_tokens = self.model.encode_image(normalise(images))
        return self.match_tokens(image_tokens, self.model.text_encoder.cross_keys_values(image_tokens), texts)

    @torch.no_grad()
    def match_tokens(self, image_tokens: Tensor, cross: list[KeysValues], texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `match`, given image tokens `(B, N, D)` and their cross-attention keys and values.

        Several texts per image need only one pass of the image encoder.
        """
        text = self.tokens(texts).to(image_tokens.device)
        similarity = (
            self.model.image_feature(image_tokens) * self.model.text_feature(self.model.encode_text(text))
        ).sum(1)
        return self.model.match(text, cross).float().softmax(1)[:, 1], similarity.float()

    def encode(self, batch: Batch) -> Tensor:
        """Returns the tokens `(B, N, D)` of a batch's images."""
        return self.model.encode_image(normalise(batch.images))

    def feature(self, tokens: Tensor) -> Tensor:
        """Maps tokens of images `(B, N, D)` to unit vectors `(B, E)`."""
        return self.model.image_feature(tokens)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[RetrievalPrediction]:
        """Returns the features of each image and of all its texts."""
        images = self.feature(self.encode(batch)).cpu()
        predictions = []
        for key, texts, image in zip(batch.keys, batch.extra["texts"], images, strict=True):
            text = self.model.text_feature(self.model.encode_text(self.tokens(texts).to(batch.images.device))).cpu()
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
        texts = self.tokens([t for p in predictions for t in p.texts])
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
        cross = self.model.text_encoder.cross_keys_values(image[None])
        logits = []
        for first in range(0, len(lengths), self.cfg.chunk):
            rows = slice(first, first + self.cfg.chunk)
            longest = int(lengths[rows].max())
            part = Tokens(texts.ids[rows, :longest], texts.mask[rows, :longest]).to(image.device)
            logits.append(self.model.match(part, cross)[:, 1].float().cpu())
        return torch.cat(logits)

    def score(self, predictions: list[RetrievalPrediction]) -> Iterator[tuple[str, float]]:
        """Yields R@1, 5, 10 in percent of text retrieval (`tr*`) and image retrieval (`ir*`), and their mean.

        With re-ranking, the score of each query's best `rerank` candidates by ITC is the ITM logit plus the similarity;
        all others rank below them.
        """
        text_ranks, image_ranks = self.ranks(predictions)
        yield from summary(text_ranks, image_ranks).items()

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
