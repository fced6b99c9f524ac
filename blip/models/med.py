"""The mixture of encoder-decoder (BLIP, section 3.1): one image encoder, and a text transformer in three modes."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Tokens
from blip.config import Config
from blip.models.bert import (
    KeysValues,
    LMHead,
    Past,
    TextConfig,
    TextTransformer,
    bidirectional_mask,
    causal_mask,
    initialise,
)
from blip.models.vision import VisionConfig, VisionEncoder

Sharing = Literal["all", "all_but_cross_attention", "all_but_self_attention", "none"]


class SpecialTokens(Config):
    """Ids of the tokens that steer the model; taken from the tokenizer when a run starts."""

    pad: int = 0
    cls: int = 101
    """Stands first where text is read alone."""
    sep: int = 102
    """Ends every text."""
    dec: int = 30522
    """Stands first where text is written."""
    enc: int = 30523
    """Stands first where text is read with an image."""


class MEDConfig(Config):
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed: int = Field(default=256, ge=1, le=65536)
    """Width of the space in which images and texts are compared."""
    share: Sharing = "all_but_self_attention"
    """What text encoder and decoder share (BLIP, Table 3)."""
    tokens: SpecialTokens = SpecialTokens()
    enc_token: bool = True
    """False leaves [CLS] in front of texts that are matched with images, as `blip_itm` and transformers do; for parity alone."""


class MED(nn.Module):
    """Image encoder, text encoder, image-grounded text encoder and image-grounded text decoder.

    A captioner needs no `encoder`, a filter no `decoder`: what is not asked for is not there.
    """

    def __init__(self, cfg: MEDConfig, encoder: bool = True, decoder: bool = True):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        if decoder:
            self.text_decoder = TextTransformer(cfg.text, cfg.vision.width, cfg.tokens.pad)
            self.lm_head = LMHead(cfg.text, self.text_decoder.embeddings.word)
        if encoder:
            self.text_encoder = TextTransformer(cfg.text, cfg.vision.width, cfg.tokens.pad)
            self.vision_proj = nn.Linear(cfg.vision.width, cfg.embed)
            self.text_proj = nn.Linear(cfg.text.width, cfg.embed)
            self.itm_head = nn.Linear(cfg.text.width, 2)
            for head in (self.vision_proj, self.text_proj, self.itm_head):
                initialise(head, cfg.text.init_std)
        if encoder and decoder:
            share(self.text_encoder, self.text_decoder, cfg.share)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images `(B, 3, H, W)` to tokens `(B, N, D)`."""
        return self.visual_encoder(images)

    def encode_text(self, text: Tokens) -> Tensor:
        """Text read alone, `(B, L, D)`; position 0 stands for the whole text."""
        return self.text_encoder(text.ids, bidirectional_mask(text.mask))

    def image_feature(self, image_tokens: Tensor) -> Tensor:
        """Image tokens `(B, N, D)` to unit vectors `(B, embed)`."""
        return F.normalize(self.vision_proj(image_tokens[:, 0]), dim=-1)

    def text_feature(self, hidden: Tensor) -> Tensor:
        """Hidden states `(B, L, D)` of texts read alone to unit vectors `(B, embed)`."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def match(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Logits `(B, 2)` of image-text matching, column 1 for a match; `cross` comes from `text_encoder.cross_keys_values`."""
        ids = with_first(text.ids, self.cfg.tokens.enc) if self.cfg.enc_token else text.ids
        hidden = self.text_encoder(ids, bidirectional_mask(text.mask), cross)
        return self.itm_head(hidden[:, 0])

    def write(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Logits `(B, L, vocabulary)` of each next token, [DEC] in front; `cross` comes from `text_decoder.cross_keys_values`."""
        ids = with_first(text.ids, self.cfg.tokens.dec)
        return self.lm_head(self.text_decoder(ids, causal_mask(text.mask), cross))

    def write_on(self, ids: Tensor, cross: list[KeysValues], past: Past) -> Tensor:
        """Logits `(B, vocabulary)` after ids `(B, L)`, which follow the `past` and join it."""
        mask = None if past.length else causal_mask(torch.ones_like(ids, dtype=torch.bool))
        return self.lm_head(self.text_decoder(ids, mask, cross, past=past)[:, -1:])[:, 0]


def with_first(ids: Tensor, token: int) -> Tensor:
    """A copy of ids `(B, L)` with another first token; the caller's ids stay as they are."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids


def share(encoder: TextTransformer, decoder: TextTransformer, what: Sharing) -> None:
    """Makes the encoder use the decoder's modules (BLIP, Table 3; all but self-attention is the paper's choice)."""
    if what == "none":
        return
    encoder.embeddings = decoder.embeddings
    for mine, theirs in zip(encoder.layers, decoder.layers, strict=True):
        mine.feed_forward = theirs.feed_forward
        if what != "all_but_self_attention":
            mine.self_attention = theirs.self_attention
        if what != "all_but_cross_attention":
            mine.cross_attention = theirs.cross_attention
