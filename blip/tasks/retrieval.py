"""Image-text retrieval with ITC and ITM; the task of the filter (BLIP, sections 3.3 and 5.1)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.batch import Batch, Tokens
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import normalise
from blip.models.bert import KeysValues
from blip.models.med import MED, MEDConfig
from blip.models.weights.load import TRAINING_STATE, Allowed
from blip.tasks.alignment import Alignment, AlignmentConfig
from blip.tasks.matching import check_padding
from blip.tasks.ranking import Ranking
from blip.tasks.task import TaskSettings
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
        check_padding(self.alignment.negatives, self.text)
        return self

    def build_model(self, model: MEDConfig) -> MED:
        return MED(model, decoder=False)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Retrieval":
        assert isinstance(model, MED)
        return Retrieval(self, model, tokenizer)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}


class Retrieval(Ranking[MED]):
    """Trains a model to align and match images and texts."""

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
        text = self.encode_texts(texts).to(image_tokens.device)
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

    def text_feature(self, text: Tokens) -> Tensor:
        return self.model.text_feature(self.model.encode_text(text))

    def keys_values(self, tokens: Tensor) -> list[KeysValues]:
        return self.model.text_encoder.cross_keys_values(tokens)

    def match_logits(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        return self.model.match(text, cross)
