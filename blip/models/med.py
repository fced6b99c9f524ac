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
    KVCache,
    LMHead,
    TextConfig,
    TextTransformer,
    bidirectional_mask,
    causal_mask,
    initialise,
)
from blip.models.vision import VisionConfig, VisionEncoder

Sharing = Literal["all", "all_but_cross_attention", "all_but_self_attention", "none"]


class SpecialTokens(Config):
    """Ids of the special tokens; taken from the tokenizer when a run starts."""

    pad: int = 0
    cls: int = 101
    """First token of a text that is encoded alone."""
    sep: int = 102
    """Last token of every text."""
    dec: int = 30522
    """First token of a text that is decoded."""
    enc: int = 30523
    """First token of a text that is encoded together with an image."""


class MEDConfig(Config):
    type: Literal["med"] = Field(default="med", exclude=True)  # not in files: older ones do not have it
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed: int = Field(default=256, ge=1, le=65536)
    """Width of the embeddings by which images and texts are compared."""
    share: Sharing = "all_but_self_attention"
    """Modules that text encoder and decoder share (BLIP, Table 3)."""
    tokens: SpecialTokens = SpecialTokens()
    enc_token: bool = True
    """False keeps [CLS] as the first token in matching, as `blip_itm` and transformers do; for parity alone."""


class MED(nn.Module):
    """Image encoder, text encoder, image-grounded text encoder and image-grounded text decoder.

    A captioner is built without the text encoder and a filter without the decoder.
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
            share_modules(self.text_encoder, self.text_decoder, cfg.share)

    def encode_image(self, images: Tensor) -> Tensor:
        """Maps normalised images `(B, 3, H, W)` to tokens `(B, N, D)`."""
        return self.visual_encoder(images)

    def encode_text(self, text: Tokens) -> Tensor:
        """Returns hidden states `(B, L, D)` of texts without an image; position 0 represents the whole text."""
        return self.text_encoder(text.ids, bidirectional_mask(text.mask))

    def image_feature(self, image_tokens: Tensor) -> Tensor:
        """Maps image tokens `(B, N, D)` to unit vectors `(B, embed)`."""
        return F.normalize(self.vision_proj(image_tokens[:, 0]), dim=-1)

    def text_feature(self, hidden: Tensor) -> Tensor:
        """Maps hidden states `(B, L, D)` of `encode_text` to unit vectors `(B, embed)`."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def match(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Returns logits `(B, 2)` of image-text matching, column 1 for a match.

        `cross` comes from `text_encoder.cross_keys_values`.
        """
        ids = replace_first(text.ids, self.cfg.tokens.enc) if self.cfg.enc_token else text.ids
        hidden = self.text_encoder(ids, bidirectional_mask(text.mask), cross)
        return self.itm_head(hidden[:, 0])

    def decode(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        """Returns logits `(B, L, vocabulary)` of each next token; the first token is replaced by [DEC].

        `cross` comes from `text_decoder.cross_keys_values`.
        """
        ids = replace_first(text.ids, self.cfg.tokens.dec)
        return self.lm_head(self.text_decoder(ids, causal_mask(text.mask), cross))

    def decode_step(self, ids: Tensor, cross: list[KeysValues], cache: KVCache) -> Tensor:
        """Returns logits `(B, vocabulary)` after ids `(B, L)`, which continue the cache and are added to it."""
        mask = None if cache.length else causal_mask(torch.ones_like(ids, dtype=torch.bool))
        hidden = self.text_decoder(ids, mask, cross, cache=cache)
        return self.lm_head(hidden[:, -1:])[:, 0]


def replace_first(ids: Tensor, token: int) -> Tensor:
    """Returns a copy of ids `(B, L)` with another first token."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids


def share_modules(encoder: TextTransformer, decoder: TextTransformer, what: Sharing) -> None:
    """Makes the encoder use the decoder's modules (BLIP, Table 3: all but self-attention is best)."""
    if what == "none":
        return
    encoder.embeddings = decoder.embeddings
    for encoder_layer, decoder_layer in zip(encoder.layers, decoder.layers, strict=True):
        encoder_layer.feed_forward = decoder_layer.feed_forward
        if what != "all_but_self_attention":
            encoder_layer.self_attention = decoder_layer.self_attention
        if what != "all_but_cross_attention":
            encoder_layer.cross_attention = decoder_layer.cross_attention
