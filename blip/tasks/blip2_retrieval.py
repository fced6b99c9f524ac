"""Image-text retrieval with BLIP-2's Q-Former, without a language model (BLIP-2, section 4.4)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.data.tokenizer import Tokenizer
from blip.models.bert import KeysValues
from blip.models.blip2 import QFormerModel
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.query_alignment import QueryAlignmentConfig
from blip.tasks.ranking import Ranking
from blip.tasks.text import TextLengths


class Blip2RetrievalConfig(Blip2Stage1Config):
    SCORING: ClassVar = frozenset()
    type: Literal["blip2_retrieval"] = "blip2_retrieval"  # pyright: ignore[reportIncompatibleVariableOverride] (it is frozen)
    alignment: QueryAlignmentConfig = QueryAlignmentConfig(same_image="positive")
    text: TextLengths = TextLengths(words=50, tokens=35, pad="max")
    rerank: int = Field(default=128, ge=0)
    """Number of candidates per query, the best by ITC, that ITM re-ranks; 0 disables re-ranking.

    The score of a candidate is the ITM logit, the mean over queries, plus the ITC similarity, that of the best query.
    """
    chunk: int = Field(default=64, ge=1)
    """Pairs per ITM forward pass in re-ranking."""

    def build_task(self, model: nn.Module, tokenizer: Tokenizer) -> "Blip2Retrieval":
        assert isinstance(model, QFormerModel)
        return Blip2Retrieval(self, model, tokenizer)


class Blip2Retrieval(Blip2Stage1, Ranking[QFormerModel]):
    """Trains the first stage's losses, all texts of an image being its own, and ranks as BLIP does."""

    cfg: Blip2RetrievalConfig  # pyright: ignore[reportIncompatibleVariableOverride] (set once)

    def collate(self, examples: list[Example]) -> Batch:
        batch = super().collate(examples)
        batch.extra["texts"] = [e.texts for e in examples]
        return batch

    def encode(self, batch: Batch) -> Tensor:
        return self.model.encode_image(batch.images)

    def feature(self, tokens: Tensor) -> Tensor:
        found, _ = self.model.qformer.encode_image(self.model.qformer.cross_keys_values(tokens))
        return self.model.image_feature(found)

    def text_feature(self, text: Tokens) -> Tensor:
        return self.model.text_feature(self.model.qformer.encode_text(text))

    def keys_values(self, tokens: Tensor) -> list[KeysValues]:
        return self.model.qformer.cross_keys_values(tokens)

    def match_logits(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        cross = [(k.expand(len(text.ids), -1, -1, -1), v.expand(len(text.ids), -1, -1, -1)) for k, v in cross]
        return self.model.match(text, cross)
