"""Pre-training with ITC, ITM and LM losses on one pass of the image encoder (BLIP, section 3.2)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.config import Config
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import normalise
from blip.models.generation import Beam, check_room
from blip.models.med import MED, MEDConfig
from blip.models.weights.load import TRAINING_STATE, Allowed
from blip.objectives.language_modeling import caption_loss, next_token_targets
from blip.tasks.alignment import Alignment, AlignmentConfig
from blip.tasks.matching import check_padding
from blip.tasks.task import Task, TaskSettings
from blip.tasks.text import Reduction, TextLengths, shared_count


class LossWeights(Config):
    itc: float = Field(default=1.0, ge=0)
    itm: float = Field(default=1.0, ge=0)
    lm: float = Field(default=1.0, ge=0)


class PretrainingConfig(TaskSettings):
    TRAINING: ClassVar = frozenset({"alignment", "weights", "smoothing", "lm_reduction"})
    TOWERS: ClassVar = ("visual_encoder", "text_encoder", "text_decoder")
    DIFFERENCES: ClassVar = Allowed(unused=TRAINING_STATE)
    type: Literal["pretraining"] = "pretraining"
    alignment: AlignmentConfig = AlignmentConfig()
    weights: LossWeights = LossWeights()
    text: TextLengths = TextLengths(words=30, tokens=30, pad="max")
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the LM loss."""
    lm_reduction: Reduction = "global"
    """Mean of the LM loss: over all tokens of an optimizer step, or, as in the reference, over each process's batch."""

    @model_validator(mode="after")
    def processes_can_exchange_texts(self) -> Self:
        check_padding(self.alignment.negatives, self.text)
        return self

    def build_model(self, model: MEDConfig) -> MED:
        return MED(model)

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Pretraining":
        assert isinstance(model, MED)
        return Pretraining(self, model, tokenizer)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}

    def check_generation(self, positions: int) -> None:
        check_room(Beam(), 1, positions)  # training monitors captions of the default length


class Pretraining(Task[MED]):
    """Trains a model to align, match and generate texts, on shared image tokens.

    A pre-trained model is evaluated as a retrieval and captioning model.
    """

    momentum_teacher = True

    def __init__(self, cfg: PretrainingConfig, model: MED, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.tokens: Tensor | None = None
        self.alignment = Alignment(cfg.alignment, model)

    def on_step(self, step: int, steps_per_epoch: int) -> list[nn.Parameter]:
        return self.alignment.on_step(self.model, step, steps_per_epoch)

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        self.tokens = shared_count(micro_batches, 1, self.cfg.lm_reduction)

    def after_step(self) -> None:
        self.alignment.after_step()
        self.tokens = None

    def undo_step(self) -> list[nn.Parameter]:
        self.tokens = None
        return self.alignment.undo_step()

    def collate(self, examples: list[Example]) -> Batch:
        return Batch.of(examples, self.cfg.text.encode([e.texts[0] for e in examples], self.tokenizer))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        text, ids = batch.text, batch.image_ids
        assert text is not None
        assert ids is not None
        model, weights = self.model, self.cfg.weights
        images = normalise(batch.images)
        image_tokens = model.encode_image(images)
        hidden = model.encode_text(text)
        itc, i2t, t2i = self.alignment.itc_loss(
            model.image_feature(image_tokens), model.text_feature(hidden), images, text, ids
        )
        cross = model.text_encoder.cross_keys_values(image_tokens)
        itm = self.alignment.itm_loss(model, text, image_tokens, cross, i2t, t2i, ids)
        shared = model.cfg.share in ("all", "all_but_self_attention")
        logits = model.decode(text, cross if shared else model.text_decoder.cross_keys_values(image_tokens))
        targets = next_token_targets(text.ids, text.mask)
        lm = caption_loss(logits[:, :-1], targets, self.cfg.smoothing, self.tokens)
        return {"itc": weights.itc * itc, "itm": weights.itm * itm, "lm": weights.lm * lm}
