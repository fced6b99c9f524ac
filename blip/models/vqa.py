"""Visual question answering: the question is read with the image, the answer is written from what was read (BLIP, section 5.3)."""

import torch
from torch import Tensor, nn

from blip.batch import Tokens
from blip.models.bert import KeysValues, LMHead, Past, TextTransformer, bidirectional_mask, causal_mask
from blip.models.med import MEDConfig, with_first
from blip.models.vision import VisionEncoder


class VQAModel(nn.Module):
    """An image-grounded encoder of questions, and a decoder of answers that looks at the question's states, not at the image."""

    def __init__(self, cfg: MEDConfig):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        self.text_encoder = TextTransformer(cfg.text, cfg.vision.width, cfg.tokens.pad)
        self.text_decoder = TextTransformer(cfg.text, cfg.text.width, cfg.tokens.pad)
        self.lm_head = LMHead(cfg.text, self.text_decoder.embeddings.word)

    def read(self, images: Tensor, question: Tokens) -> list[KeysValues]:
        """Questions `(Q, L)` of normalised images `(Q, 3, H, W)` (frames `(Q, F, 3, H, W)`) as the decoder's keys and values `(Q, ...)`."""
        cross = self.text_encoder.cross_keys_values(self.visual_encoder(images))
        ids = with_first(question.ids, self.cfg.tokens.enc)
        return self.text_decoder.cross_keys_values(self.text_encoder(ids, bidirectional_mask(question.mask), cross))

    def write(self, answers: Tokens, cross: list[KeysValues], question_mask: Tensor) -> Tensor:
        """Logits `(A, L, vocabulary)` of each next token of answers, of whose questions keys, values and mask `(A, N)` are given."""
        ids = with_first(answers.ids, self.cfg.tokens.dec)
        hidden = self.text_decoder(ids, causal_mask(answers.mask), cross, bidirectional_mask(question_mask))
        return self.lm_head(hidden)

    def write_on(self, ids: Tensor, cross: list[KeysValues], past: Past, question_mask: Tensor) -> Tensor:
        """Logits `(A, vocabulary)` after ids `(A, L)`, which follow the `past` and join it."""
        mask = None if past.length else causal_mask(torch.ones_like(ids, dtype=torch.bool))
        return self.lm_head(self.text_decoder(ids, mask, cross, bidirectional_mask(question_mask), past)[:, -1:])[:, 0]
