"""The text transformer: BERT's post-norm layers with cross-attention to an image. Masks come from outside."""

from collections.abc import Callable
from functools import partial
from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip.config import Config

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `(B, heads, N, D / heads)`."""


class TextConfig(Config):
    vocab_size: int = Field(default=30524, ge=1, le=10_000_000)
    """BERT's 30522 word pieces, then [DEC] and [ENC]; taken from the tokenizer when a run starts."""
    width: int = Field(default=768, ge=1, le=65536)
    depth: int = Field(default=12, ge=1, le=1000)
    heads: int = Field(default=12, ge=1, le=1024)
    feed_forward: int = Field(default=3072, ge=1, le=1_000_000)
    positions: int = Field(default=512, ge=2, le=1_000_000)
    """Tokens of the longest text."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of embeddings, attention weights and sub-layer outputs."""
    eps: float = Field(default=1e-12, gt=0, le=1)
    """Of every LayerNorm."""
    init_std: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial weights; about 1/sqrt(width) lets small models learn."""
    checkpoint_last: int = Field(default=0, ge=0)
    """Recompute the activations of this many last layers in the backward pass, to save memory."""

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"text.width is {self.width}, which {self.heads} heads cannot share: make it a multiple of text.heads")
        if self.checkpoint_last > self.depth:
            raise ValueError(f"text.checkpoint_last is {self.checkpoint_last}, but there are {self.depth} layers: lower it to text.depth")
        return self


def bidirectional_mask(mask: Tensor) -> Tensor:
    """Lets every token see every real token: `(B, L)` to `(B, 1, 1, L)`."""
    return mask[:, None, None, :]


def causal_mask(mask: Tensor) -> Tensor:
    """Lets every token see itself and the real tokens before it: `(B, L)` to `(B, 1, L, L)`."""
    length = mask.shape[1]
    return mask[:, None, None, :] & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention of queries `(B, heads, L, D)`."""
    if queries.shape[2] == 1 and queries.device.type == "cpu" and mask is None and not dropout:
        # for one query on a CPU the fused kernel takes up to ten times as long as its two products, in bfloat16
        return (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(-1) @ values
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)


class Attention(nn.Module):
    """Multi-head attention, its output projection, dropout, and LayerNorm over the residual."""

    def __init__(self, cfg: TextConfig, source_width: int):
        super().__init__()
        self.heads = cfg.heads
        self.dropout = cfg.dropout
        self.query = nn.Linear(cfg.width, cfg.width)
        self.key = nn.Linear(source_width, cfg.width)
        self.value = nn.Linear(source_width, cfg.width)
        self.output = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def split(self, x: Tensor) -> Tensor:
        """`(B, L, D)` to `(B, heads, L, D / heads)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of what is attended to, `(B, N, source width)`."""
        return self.split(self.key(source)), self.split(self.value(source))

    def context(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """What the source says to each position `(B, L, D)`, before the output projection."""
        dropout = self.dropout if self.training else 0.0
        context = attend(self.split(self.query(x)), *source, mask, dropout)
        return context.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """`(B, L, D)` to `(B, L, D)`; `mask` broadcasts to `(B, heads, L, N)`, True where attention may go."""
        return self.norm(x + F.dropout(self.output(self.context(x, source, mask)), self.dropout, self.training))


class FeedForward(nn.Module):
    """Two linear maps around a GELU, dropout, and LayerNorm over the residual."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.dropout = cfg.dropout
        self.up = nn.Linear(cfg.width, cfg.feed_forward)
        self.down = nn.Linear(cfg.feed_forward, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.down(F.gelu(self.up(x))), self.dropout, self.training))


class Past:
    """Self-attention's keys and values of the words so far; the room for a whole text is taken once and filled in place."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self.layers: list[KeysValues] = []

    def extend(self, layer: int, own: KeysValues) -> KeysValues:
        """Puts those of new words `(B, heads, L, D)` behind a layer's others, and gives all of them."""
        if layer == len(self.layers):
            batch, heads, _, width = own[0].shape
            self.layers.append((own[0].new_empty(batch, heads, self.room, width), own[1].new_empty(batch, heads, self.room, width)))
        end = self.length + own[0].shape[2]
        for kept, new in zip(self.layers[layer], own, strict=True):
            kept[:, :, self.length : end] = new
        keys, values = self.layers[layer]
        return keys[:, :, :end], values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Lets each row `(B,)` go on from another one's past."""
        for kept in (tensor for layer in self.layers for tensor in layer):
            kept[:, :, : self.length] = kept[rows, :, : self.length]


class TextLayer(nn.Module):
    """Self-attention, then cross-attention where there is something to look at, then feed-forward."""

    def __init__(self, cfg: TextConfig, cross_width: int | None):
        super().__init__()
        self.self_attention = Attention(cfg, cfg.width)
        if cross_width is not None:
            self.cross_attention = Attention(cfg, cross_width)
        self.feed_forward = FeedForward(cfg)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        cross: KeysValues | None = None,
        cross_mask: Tensor | None = None,
        extend: Callable[[KeysValues], KeysValues] | None = None,
    ) -> Tensor:
        """The layer's output; `extend` gives self-attention's keys and values with those of the past before them."""
        own = self.self_attention.keys_values(x)
        x = self.self_attention(x, extend(own) if extend else own, mask)
        if cross is not None:
            x = self.cross_attention(x, cross, cross_mask)
        return self.feed_forward(x)


class Embeddings(nn.Module):
    """Words and positions."""

    def __init__(self, cfg: TextConfig, pad: int):
        super().__init__()
        self.dropout = cfg.dropout
        self.word = nn.Embedding(cfg.vocab_size, cfg.width, padding_idx=pad)
        self.position = nn.Embedding(cfg.positions, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Ids `(B, L)`, of which the first stands at position `start`, to `(B, L, D)`."""
        positions = self.position.weight[start : start + ids.shape[1]]
        return F.dropout(self.norm(self.word(ids) + positions), self.dropout, self.training)


class TextTransformer(nn.Module):
    """A stack of text layers; looks at images through `cross`, and is a plain text encoder without. The word `pad` is not learnt."""

    def __init__(self, cfg: TextConfig, cross_width: int | None, pad: int = 0):
        super().__init__()
        self.embeddings = Embeddings(cfg, pad)
        self.layers = nn.ModuleList(TextLayer(cfg, cross_width) for _ in range(cfg.depth))
        self.checkpoint_from = cfg.depth - cfg.checkpoint_last
        initialise(self, cfg.init_std)

    def cross_keys_values(self, source: Tensor) -> list[KeysValues]:
        """Each layer's cross-attention keys and values of image tokens `(B, N, cross width)`: made once, used for every text."""
        return [cast(TextLayer, layer).cross_attention.keys_values(source) for layer in self.layers]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        cross: list[KeysValues] | None = None,
        cross_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Hidden states `(B, L, D)` of ids `(B, L)` that follow the `past`, which they join.

        `mask` broadcasts to `(B, 1, L, past + L)`, True where attention may go.
        """
        x = self.embeddings(ids, start=past.length if past else 0)
        for i, layer in enumerate(self.layers):
            inputs = (x, mask, cross[i] if cross else None, cross_mask, partial(past.extend, i) if past else None)
            recompute = self.training and i >= self.checkpoint_from
            x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        if past:
            past.length += ids.shape[1]
        return x


class LMHead(nn.Module):
    """Hidden states to word logits; the last map is the word embedding, plus a bias."""

    def __init__(self, cfg: TextConfig, word: nn.Embedding):
        super().__init__()
        self.dense = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)
        initialise(self, cfg.init_std)
        self.decoder = nn.Linear(cfg.width, cfg.vocab_size)
        self.decoder.weight = word.weight
        nn.init.zeros_(self.decoder.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, L, D)` to `(B, L, vocabulary)`."""
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


def initialise(module: nn.Module, std: float) -> None:
    """BERT's initial values: normal weights, zero biases, a zero padding row."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight.data[part.padding_idx])
