"""A statement about two images: every text layer looks at both and merges what it sees (BLIP, section 5.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.batch import Tokens
from blip.models.bert import Attention, KeysValues, TextConfig, TextTransformer, bidirectional_mask, initialise
from blip.models.med import MEDConfig, with_first
from blip.models.vision import VisionEncoder

MERGED_FROM = 6
"""The first layer that merges by a learnt map; those below average."""


class TwoImageAttention(nn.Module):
    """Two cross-attentions, one an image, whose outputs are averaged or merged, then dropout and one LayerNorm over the residual."""

    def __init__(self, cfg: TextConfig, source_width: int, merge: bool):
        super().__init__()
        self.dropout = cfg.dropout
        self.first = Attention(cfg, source_width)
        self.second = Attention(cfg, source_width)
        del self.first.norm, self.second.norm  # one serves both
        self.merge = nn.Linear(2 * cfg.width, cfg.width) if merge else None
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of two images `(B, 2, N, source width)`, each `(B, 2, heads, N, D / heads)`."""
        (k, v), (other_k, other_v) = self.first.keys_values(source[:, 0]), self.second.keys_values(source[:, 1])
        return torch.stack([k, other_k], 1), torch.stack([v, other_v], 1)

    def forward(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """`(B, L, D)` to `(B, L, D)`."""
        keys, values = source
        seen = [
            attention.output(attention.context(x, (keys[:, i], values[:, i]), mask))
            for i, attention in enumerate((self.first, self.second))
        ]
        merged = (seen[0] + seen[1]) / 2 if self.merge is None else self.merge(torch.cat(seen, -1))
        return self.norm(x + F.dropout(merged, self.dropout, self.training))


class NLVRModel(nn.Module):
    """Image encoder, image-grounded encoder that sees two images, and a classifier."""

    def __init__(self, cfg: MEDConfig):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        self.text_encoder = TextTransformer(cfg.text, None, cfg.tokens.pad)
        for i, layer in enumerate(self.text_encoder.layers):
            layer.cross_attention = TwoImageAttention(cfg.text, cfg.vision.width, merge=i >= MERGED_FROM)
        self.cls_head = nn.Sequential(nn.Linear(cfg.text.width, cfg.text.width), nn.ReLU(), nn.Linear(cfg.text.width, 2))
        initialise(self.text_encoder, cfg.text.init_std)
        initialise(self.cls_head, cfg.text.init_std)

    def forward(self, images: Tensor, text: Tokens) -> Tensor:
        """Logits `(B, 2)`, column 1 for a true statement; normalised images `(B, 2, 3, H, W)`, the left one first."""
        tokens = self.visual_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        cross = self.text_encoder.cross_keys_values(tokens)
        ids = with_first(text.ids, self.cfg.tokens.enc)
        return self.cls_head(self.text_encoder(ids, bidirectional_mask(text.mask), cross)[:, 0])
