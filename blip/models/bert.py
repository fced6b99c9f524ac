"""The text transformer: BERT's post-norm layers with cross-attention to an image. Callers pass the attention masks."""

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
    """Dropout rate of embeddings, attention weights and sub-layer outputs."""
    eps: float = Field(default=1e-12, gt=0, le=1)
    """Epsilon of every LayerNorm."""
    init_std: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial weights; about 1/sqrt(width) lets small models learn."""
    checkpoint_last: int = Field(default=0, ge=0)
    """Recompute the activations of this many last layers in the backward pass, to save memory."""

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"text.width is {self.width}, not divisible by {self.heads} heads: make it a multiple of text.heads"
            )
        if self.checkpoint_last > self.depth:
            raise ValueError(
                f"text.checkpoint_last is {self.checkpoint_last}, but there are {self.depth} layers: lower it to "
                "text.depth"
            )
        return self


def bidirectional_mask(mask: Tensor) -> Tensor:
    """Returns the mask `(B, 1, 1, L)` by which every token attends to every real token; `mask` is `(B, L)`."""
    return mask[:, None, None, :]


def causal_mask(mask: Tensor) -> Tensor:
    """Returns the mask `(B, 1, L, L)` by which tokens attend to themselves and real ones before; `mask` is `(B, L)`."""
    length = mask.shape[1]
    return mask[:, None, None, :] & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Returns scaled dot-product attention `(B, heads, L, D)` of queries of that shape."""
    if queries.shape[2] == 1 and queries.device.type == "cpu" and mask is None and not dropout:
        # For one query on a CPU in bfloat16, the fused kernel takes up to ten times as long as two plain products.
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
        """Maps `(B, L, D)` to `(B, heads, L, D / heads)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Returns keys and values of a source `(B, N, source width)`."""
        return self.split(self.key(source)), self.split(self.value(source))

    def attend(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Returns the attention output `(B, L, D)` of `x` over a source, before the output projection.

        A source of one row serves all rows of `x`.
        """
        keys, values = source
        dropout = self.dropout if self.training else 0.0
        shared = len(keys) == 1 < len(x) and mask is None
        # Tokens of all texts are queries of one product, instead of a copy of keys and values for each text.
        queries = self.split(self.query(x.flatten(0, 1)[None] if shared else x))
        heads = sdpa(queries, keys, values, mask, dropout)
        return heads.transpose(1, 2).flatten(2).view_as(x)

    def forward(self, x: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`; `mask` broadcasts to `(B, heads, L, N)`, True at positions to attend to."""
        projected = self.output(self.attend(x, source, mask))
        return self.norm(x + F.dropout(projected, self.dropout, self.training))


class FeedForward(nn.Module):
    """Two linear maps around a GELU, dropout, and LayerNorm over the residual."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.dropout = cfg.dropout
        self.up = nn.Linear(cfg.width, cfg.feed_forward)
        self.down = nn.Linear(cfg.feed_forward, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`."""
        projected = self.down(F.gelu(self.up(x)))
        return self.norm(x + F.dropout(projected, self.dropout, self.training))


class KVCache:
    """Self-attention keys and values of the tokens decoded so far, in buffers allocated once for a whole text."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.layers: list[KeysValues] = []

    def append(self, layer: int, new: KeysValues) -> KeysValues:
        """Stores a layer's keys and values of new tokens `(B, heads, L, D)`, and returns those of all tokens."""
        new_keys, new_values = new
        if layer == len(self.layers):
            batch, heads, _, width = new_keys.shape
            shape = (batch, heads, self.capacity, width)
            self.layers.append((new_keys.new_empty(shape), new_values.new_empty(shape)))
        keys, values = self.layers[layer]
        end = self.length + new_keys.shape[2]
        keys[:, :, self.length : end] = new_keys
        values[:, :, self.length : end] = new_values
        return keys[:, :, :end], values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Replaces each row's entries with those of row `rows[i]`, `(B,)`, when beam search changes its beams."""
        for keys, values in self.layers:
            keys[:, :, : self.length] = keys[rows, :, : self.length]
            values[:, :, : self.length] = values[rows, :, : self.length]


class TextLayer(nn.Module):
    """Self-attention, then cross-attention if `cross` is passed, then feed-forward."""

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
        append: Callable[[KeysValues], KeysValues] | None = None,
    ) -> Tensor:
        """Maps `(B, L, D)` to `(B, L, D)`; `append` adds keys and values of `x` to a cache and returns all of them."""
        keys_values = self.self_attention.keys_values(x)
        if append is not None:
            keys_values = append(keys_values)
        x = self.self_attention(x, keys_values, mask)
        if cross is not None:
            x = self.cross_attention(x, cross, cross_mask)
        return self.feed_forward(x)


class TextEmbeddings(nn.Module):
    """Word and position embeddings, LayerNorm and dropout."""

    def __init__(self, cfg: TextConfig, pad: int):
        super().__init__()
        self.dropout = cfg.dropout
        self.word = nn.Embedding(cfg.vocab_size, cfg.width, padding_idx=pad)
        self.position = nn.Embedding(cfg.positions, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Maps ids `(B, L)`, the first at position `start`, to `(B, L, D)`."""
        positions = self.position.weight[start : start + ids.shape[1]]
        embedded = self.norm(self.word(ids) + positions)
        return F.dropout(embedded, self.dropout, self.training)


class TextTransformer(nn.Module):
    """A stack of text layers: image-grounded if `cross` is passed, else a plain text encoder.

    The embedding of the token `pad` stays 0.
    """

    def __init__(self, cfg: TextConfig, cross_width: int | None, pad: int = 0):
        super().__init__()
        self.embeddings = TextEmbeddings(cfg, pad)
        self.layers = nn.ModuleList(TextLayer(cfg, cross_width) for _ in range(cfg.depth))
        self.checkpoint_from = cfg.depth - cfg.checkpoint_last
        initialise(self, cfg.init_std)

    def cross_keys_values(self, source: Tensor) -> list[KeysValues]:
        """Returns each layer's cross-attention keys and values of image tokens `(B, N, cross width)`.

        They are computed once and reused for every text of the image.
        """
        return [cast(TextLayer, layer).cross_attention.keys_values(source) for layer in self.layers]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        cross: list[KeysValues] | None = None,
        cross_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Returns hidden states `(B, L, D)` of ids `(B, L)`; with a cache, ids continue its tokens and are added to it.

        `mask` broadcasts to `(B, 1, L, cached + L)`, True at positions to attend to.
        """
        x = self.embeddings(ids, start=cache.length if cache else 0)
        for i, layer in enumerate(self.layers):
            layer_cross = cross[i] if cross else None
            append = partial(cache.append, i) if cache else None
            inputs = (x, mask, layer_cross, cross_mask, append)
            recompute = self.training and i >= self.checkpoint_from
            x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        if cache:
            cache.length += ids.shape[1]
        return x


class LMHead(nn.Module):
    """BERT's language modeling head; its last map is the word embedding, plus a bias."""

    def __init__(self, cfg: TextConfig, word: nn.Embedding):
        super().__init__()
        self.dense = nn.Linear(cfg.width, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps)
        initialise(self, cfg.init_std)
        self.decoder = nn.Linear(cfg.width, cfg.vocab_size)
        self.decoder.weight = word.weight
        nn.init.zeros_(self.decoder.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps hidden states `(B, L, D)` to logits `(B, L, vocabulary)`."""
        transformed = self.norm(F.gelu(self.dense(hidden)))
        return self.decoder(transformed)


def initialise(module: nn.Module, std: float) -> None:
    """Sets BERT's initial values in place: normal weights, zero biases, a zero padding row."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight.data[part.padding_idx])
