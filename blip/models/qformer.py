"""The Q-Former: learned queries that read an image and share self-attention with a text (BLIP-2, section 3.1)."""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip.batch import Tokens
from blip.models.bert import Attention, FeedForward, KeysValues, KVCache, TextConfig, TextEmbeddings, initialise

Attending = Literal["unimodal", "bidirectional", "causal"]
"""Who attends to whom: in ITC queries and texts among themselves, in ITM all to all, in ITG texts to queries and to the
words before."""

Append = Callable[[KeysValues], KeysValues]
"""Adds keys and values of the earlier positions to a layer's own."""


def attention_mask(attending: Attending, queries: int, text: Tensor) -> Tensor:
    """Returns the mask `(B, 1, Q + L, Q + L)` over queries and text, in this order (BLIP-2, figure 2).

    It is True where a row attends to a column. `text` `(B, L)` is True for real tokens; nothing attends to padding.
    """
    assert attending in get_args(Attending)
    batch, length = text.shape
    positions = torch.arange(queries + length, device=text.device)
    row_is_text, column_is_text = positions[:, None] >= queries, positions[None, :] >= queries
    match attending:
        case "unimodal":
            allowed = row_is_text == column_is_text
        case "bidirectional":
            allowed = torch.ones_like(row_is_text & column_is_text)
        case "causal":
            allowed = ~column_is_text | (row_is_text & (positions[:, None] >= positions[None, :]))
    real = torch.cat([text.new_ones(batch, queries), text], dim=1)
    return (allowed & real[:, None, :])[:, None]


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention of the queries in some layers, and a feed-forward each for queries and text."""

    def __init__(self, cfg: TextConfig, cross_width: int | None, text: bool):
        super().__init__()
        self.self_attention = Attention(cfg, cfg.width)
        if cross_width is not None:
            self.cross_attention = Attention(cfg, cross_width)
        self.query_feed_forward = FeedForward(cfg)
        if text:
            self.feed_forward = FeedForward(cfg)

    def forward(
        self, x: Tensor, queries: int, mask: Tensor | None, cross: KeysValues | None, append: Append | None
    ) -> Tensor:
        """Maps `(B, L, D)`, of which the first `queries` positions are queries, to `(B, L, D)`."""
        keys_values = self.self_attention.keys_values(x)
        if append is not None:
            keys_values = append(keys_values)
        x = self.self_attention(x, keys_values, mask)
        if not queries:
            return self.feed_forward(x)
        asked, text = x[:, :queries], x[:, queries:]
        if cross is not None:
            asked = self.cross_attention(asked, cross)
        asked = self.query_feed_forward(asked)
        return torch.cat([asked, self.feed_forward(text)], dim=1) if text.shape[1] else asked


class QFormer(nn.Module):
    """A text transformer whose learned queries attend to image tokens in every `cross_every`-th layer, from the first.

    Without `text` it has no word embeddings and no feed-forward for texts, and takes images alone (BLIP-2, stage 2).
    """

    def __init__(
        self, cfg: TextConfig, queries: int, cross_every: int, cross_width: int, pad: int = 0, text: bool = True
    ):
        super().__init__()
        self.queries, self.cross_every = queries, cross_every
        self.query_tokens = nn.Parameter(torch.empty(1, queries, cfg.width))
        self.embeddings = TextEmbeddings(cfg, pad)
        if not text:
            del self.embeddings.word, self.embeddings.position
        self.layers = nn.ModuleList(
            QFormerLayer(cfg, None if i % cross_every else cross_width, text) for i in range(cfg.depth)
        )
        self.checkpoint_from = cfg.depth - cfg.checkpoint_last
        initialise(self, cfg.init_std)
        nn.init.normal_(self.query_tokens, std=cfg.init_std)

    def cross_keys_values(self, source: Tensor) -> list[KeysValues]:
        """Returns keys and values of image tokens `(B, N, cross width)` for each layer with cross-attention.

        They are computed once and serve every text of the image.
        """
        layers = [cast(QFormerLayer, layer) for layer in self.layers[:: self.cross_every]]
        return [layer.cross_attention.keys_values(source) for layer in layers]

    def encode_image(self, cross: list[KeysValues]) -> tuple[Tensor, list[KeysValues]]:
        """Returns what the queries find in images `(B, Q, D)`, and their self-attention keys and values by layer."""
        past: list[KeysValues] = []
        return self.run(self.embed_queries(len(cross[0][0])), None, cross, self.collect(past)), past

    def encode_text(self, text: Tokens) -> Tensor:
        """Returns hidden states `(B, L, D)` of texts without an image; position 0 represents the whole text."""
        mask = attention_mask("unimodal", 0, text.mask)
        return self.run(self.embeddings(text.ids), mask, None, None)

    def encode_both(
        self, text: Tokens, cross: list[KeysValues], attending: Attending
    ) -> tuple[Tensor, Tensor, list[KeysValues]]:
        """Returns the hidden states of queries `(B, Q, D)` and of texts `(B, L, D)` in one pass.

        The third value are the queries' self-attention keys and values by layer.
        """
        past: list[KeysValues] = []
        x = torch.cat([self.embed_queries(len(text.ids)), self.embeddings(text.ids)], dim=1)
        hidden = self.run(x, attention_mask(attending, self.queries, text.mask), cross, self.collect(past))
        return hidden[:, : self.queries], hidden[:, self.queries :], past

    def decode(self, text: Tokens, past: list[KeysValues]) -> Tensor:
        """Returns hidden states `(B, L, D)` of texts of which each word attends to the queries and to the words before.

        `past` are the queries' keys and values, of images `(B, ...)`.
        """
        mask = attention_mask("causal", self.queries, text.mask)[:, :, self.queries :]
        append = [partial(after, earlier) for earlier in past]
        return self.run(self.embeddings(text.ids), mask, None, append)

    def decode_step(self, ids: Tensor, past: list[KeysValues], cache: KVCache) -> Tensor:
        """Returns hidden states `(B, L, D)` of ids `(B, L)`, which continue the cache and are added to it."""
        new = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        mask = None if cache.length else attention_mask("causal", self.queries, new.mask)[:, :, self.queries :]

        def append(layer: int, own: KeysValues) -> KeysValues:
            return after(past[layer], cache.append(layer, own))

        hidden = self.run(
            self.embeddings(ids, start=cache.length),
            mask,
            None,
            [partial(append, layer) for layer in range(len(self.layers))],
        )
        cache.length += ids.shape[1]
        return hidden

    def embed_queries(self, batch: int) -> Tensor:
        """Returns the input of the queries `(batch, Q, D)`, which have no position."""
        embedded = self.embeddings.norm(self.query_tokens)
        embedded = embedded.expand(batch, -1, -1)
        return F.dropout(embedded, self.embeddings.dropout, self.training)

    def collect(self, past: list[KeysValues]) -> list[Append]:
        """Returns a function for each layer that appends the queries' keys and values to `past`."""

        def append(layer: int, own: KeysValues) -> KeysValues:
            of_queries = own[0][:, :, : self.queries], own[1][:, :, : self.queries]
            if layer == len(past):  # a recomputation for the backward pass comes here again
                past.append(of_queries)
            return own

        return [partial(append, layer) for layer in range(len(self.layers))]

    def run(
        self, x: Tensor, mask: Tensor | None, cross: list[KeysValues] | None, append: list[Append] | None
    ) -> Tensor:
        """Runs all layers over `(B, L, D)`; with `cross` the first positions are the queries."""
        queries = self.queries if cross is not None else 0
        for i, layer in enumerate(self.layers):
            seen = cross[i // self.cross_every] if cross is not None and i % self.cross_every == 0 else None
            inputs = (x, queries, mask, seen, append[i] if append else None)
            recompute = self.training and i >= self.checkpoint_from
            x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return x


def after(earlier: KeysValues, own: KeysValues) -> KeysValues:
    """Returns keys and values of earlier positions, and then of a layer's own."""
    return torch.cat([earlier[0], own[0]], dim=2), torch.cat([earlier[1], own[1]], dim=2)
