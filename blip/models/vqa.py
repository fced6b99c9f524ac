"""Visual question answering: encodes the question with the image, and decodes the answer (BLIP, section 5.3)."""

import torch
from torch import Tensor, nn

from blip.batch import Tokens
from blip.models.bert import KeysValues, KVCache, LMHead, TextTransformer, bidirectional_mask, causal_mask
from blip.models.med import MEDConfig, replace_first
from blip.models.vision import VisionEncoder


class VQAModel(nn.Module):
    """An image-grounded question encoder, and an answer decoder that attends to the question's hidden states."""

    def __init__(self, cfg: MEDConfig):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        self.text_encoder = TextTransformer(cfg.text, cfg.vision.width, cfg.tokens.pad)
        self.text_decoder = TextTransformer(cfg.text, cfg.text.width, cfg.tokens.pad)
        self.lm_head = LMHead(cfg.text, self.text_decoder.embeddings.word)

    def encode_question(self, images: Tensor, question: Tokens) -> list[KeysValues]:
        """Returns the decoder's cross-attention keys and values `(Q, ...)` of questions `(Q, L)` about images.

        Images are normalised, `(Q, 3, H, W)`, or `(Q, F, 3, H, W)` for frames.
        """
        cross = self.text_encoder.cross_keys_values(self.visual_encoder(images))
        ids = replace_first(question.ids, self.cfg.tokens.enc)
        hidden = self.text_encoder(ids, bidirectional_mask(question.mask), cross)
        return self.text_decoder.cross_keys_values(hidden)

    def decode(self, answers: Tokens, cross: list[KeysValues], question_mask: Tensor) -> Tensor:
        """Returns logits `(A, L, vocabulary)` of each next token of answers.

        `cross` and `question_mask` `(A, N)` are those of each answer's question.
        """
        ids = replace_first(answers.ids, self.cfg.tokens.dec)
        hidden = self.text_decoder(ids, causal_mask(answers.mask), cross, bidirectional_mask(question_mask))
        return self.lm_head(hidden)

    def decode_step(self, ids: Tensor, cross: list[KeysValues], cache: KVCache, question_mask: Tensor) -> Tensor:
        """Returns logits `(A, vocabulary)` after ids `(A, L)`, which continue the cache and are added to it."""
        mask = None if cache.length else causal_mask(torch.ones_like(ids, dtype=torch.bool))
        hidden = self.text_decoder(ids, mask, cross, bidirectional_mask(question_mask), cache)
        return self.lm_head(hidden[:, -1:])[:, 0]
