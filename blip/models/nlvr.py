"""NLVR2: every text layer attends to both images and merges the outputs (BLIP, section 5.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.batch import Tokens
from blip.models.bert import Attention, KeysValues, TextConfig, TextTransformer, bidirectional_mask, initialise
from blip.models.med import MEDConfig, replace_first
from blip.models.vision import VisionEncoder

MERGED_FROM = 6
"""The first layer that merges by a learnt linear map; the layers below average."""


def merged_from(layers: int) -> int:
    """Returns the first merging layer of a text encoder: the paper's, or of smaller ones that of their upper half.

    A model that only averages could hardly tell the left image from the right one.
    """
    return MERGED_FROM if layers > MERGED_FROM else layers // 2


class TwoImageAttention(nn.Module):
    """One cross-attention an image, whose outputs are merged, then dropout and LayerNorm over the residual.

    Outputs are averaged, or merged by a learnt linear map.
    """

    def __init__(self, cfg: TextConfig, source_width: int, merge: bool):
        super().__init__()
        self.dropout = cfg.dropout
        self.first = Attention(cfg, source_width)
        self.second = Attention(cfg, source_width)
        del self.first.norm, self.second.norm  # `self.norm` replaces them
        self.merge = nn.Linear(2 * cfg.width, cfg.width) if merge else None
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Returns keys and values, each `(B, 2, heads, N, D / heads)`, of two images `(B, 2, N, source width)`."""
        first_keys, first_values = self.first.keys_values(source[:, 0])
        second_keys, second_values = self.second.keys_values(source[:, 1])
        return torch.stack([first_keys, second_keys], 1), torch.stack([first_values, second_values], 1)

    def forward(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`."""
        keys, values = source
        first = self.first.output(self.first.attend(x, (keys[:, 0], values[:, 0]), mask))
        second = self.second.output(self.second.attend(x, (keys[:, 1], values[:, 1]), mask))
        merged = (first + second) / 2 if self.merge is None else self.merge(torch.cat([first, second], -1))
        return self.norm(x + F.dropout(merged, self.dropout, self.training))


class NLVRModel(nn.Module):
    """Image encoder, text encoder grounded in two images, and a classifier."""

    def __init__(self, cfg: MEDConfig):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        self.text_encoder = TextTransformer(cfg.text, None, cfg.tokens.pad)
        first = merged_from(len(self.text_encoder.layers))
        for i, layer in enumerate(self.text_encoder.layers):
            layer.cross_attention = TwoImageAttention(cfg.text, cfg.vision.width, merge=i >= first)
        width = cfg.text.width
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        initialise(self.text_encoder, cfg.text.init_std)
        initialise(self.cls_head, cfg.text.init_std)

    def forward(self, images: Tensor, text: Tokens) -> Tensor:
        """Returns logits `(B, 2)`, column 1 for true, of texts and normalised images `(B, 2, 3, H, W)`, left first."""
        tokens = self.visual_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        cross = self.text_encoder.cross_keys_values(tokens)
        ids = replace_first(text.ids, self.cfg.tokens.enc)
        hidden = self.text_encoder(ids, bidirectional_mask(text.mask), cross)
        return self.cls_head(hidden[:, 0])
