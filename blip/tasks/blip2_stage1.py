"""The first stage of BLIP-2: a Q-Former learns to find in images what texts say (BLIP-2, section 3.2)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example
from blip.data.tokenizer import Tokenizer
from blip.models.blip2 import Blip2Config, QFormerModel
from blip.models.generation import Beam, check_room
from blip.models.image_encoder import load_image_encoder
from blip.models.weights.load import Allowed
from blip.objectives.language_modeling import caption_loss, next_token_targets
from blip.tasks.pretraining import LossWeights
from blip.tasks.query_alignment import QueryAlignment, QueryAlignmentConfig
from blip.tasks.task import Task, TaskSettings
from blip.tasks.text import Reduction, TextLengths, shared_count


class Blip2Stage1Config(TaskSettings):
    MODEL: ClassVar = Blip2Config
    TRAINING: ClassVar = frozenset({"alignment", "weights", "smoothing", "lm_reduction", "features"})
    TOWERS: ClassVar = ("visual_encoder", "qformer")
    DIFFERENCES: ClassVar = Allowed(unused=("temp",), missing=("visual_encoder.*",))
    type: Literal["blip2_stage1"] = "blip2_stage1"
    alignment: QueryAlignmentConfig = QueryAlignmentConfig()
    weights: LossWeights = LossWeights()
    text: TextLengths = TextLengths(words=50, tokens=32, pad="max")
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the LM loss."""
    lm_reduction: Reduction = "global"
    """Mean of the LM loss: over all tokens of an optimizer step, or, as in the reference, over each process's batch."""
    features: bool = False
    """The data hold the image encoder's features instead of images, so that it is not loaded."""

    def build_model(self, model: Blip2Config) -> QFormerModel:
        return QFormerModel(model, None if self.features else load_image_encoder(model.vision))

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Blip2Stage1":
        assert isinstance(model, QFormerModel)
        return Blip2Stage1(self, model, tokenizer)

    def text_tokens(self) -> dict[str, int]:
        return {"text.tokens": self.text.tokens}

    def check_generation(self, positions: int) -> None:
        check_room(Beam(), 1, positions)  # training monitors captions of the default length


class Blip2Stage1(Task[QFormerModel]):
    """Trains a Q-Former with ITC, ITM and LM, image-grounded text generation (ITG), on one pass over the image."""

    def __init__(self, cfg: Blip2Stage1Config, model: QFormerModel, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.tokens: Tensor | None = None
        self.alignment = QueryAlignment(cfg.alignment)

    def look_ahead(self, micro_batches: Sequence[Batch]) -> None:
        self.tokens = shared_count(micro_batches, 1, self.cfg.lm_reduction)

    def after_step(self) -> None:
        self.alignment.after_step()
        self.tokens = None

    def undo_step(self) -> list[nn.Parameter]:
        self.tokens = None
        return []

    def collate(self, examples: list[Example]) -> Batch:
        return Batch.of(examples, self.cfg.text.encode([e.texts[0] for e in examples], self.tokenizer))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        text, ids = batch.text, batch.image_ids
        assert text is not None
        assert ids is not None
        model, weights = self.model, self.cfg.weights
        image_tokens = model.encode_image(batch.images)
        cross = model.qformer.cross_keys_values(image_tokens)
        found, hidden, past = model.qformer.encode_both(text, cross, "unimodal")
        itc, i2t, t2i = self.alignment.itc_loss(model.image_feature(found), model.text_feature(hidden), ids)
        itm = self.alignment.itm_loss(model, text, image_tokens, cross, i2t, t2i, ids)
        logits = model.decode(text, past)
        targets = next_token_targets(text.ids, text.mask)
        lm = caption_loss(logits[:, :-1], targets, self.cfg.smoothing, self.tokens)
        return {"itc": weights.itc * itc, "itm": weights.itm * itm, "lm": weights.lm * lm}
