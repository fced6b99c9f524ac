"""Text lengths and token counts, shared by all tasks with texts."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from blip.batch import Batch, Tokens
from blip.config import Config
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.distributed import all_reduce_mean, device


class TextLengths(Config):
    words: int = Field(default=30, ge=1, le=1_000_000)
    """Maximum number of words; further words are cut."""
    tokens: int = Field(default=30, ge=3, le=1_000_000)
    """Maximum number of tokens, including [CLS] and [SEP]; further tokens are cut."""
    pad: Literal["longest", "max"] = "max"
    """Pad to the longest text of the batch, or always to `tokens`.

    Constant shapes suit GPUs, and batches gathered over ranks.
    """

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Tokens:
        """Returns captions, cleaned, as tokens `(B, L)`."""
        return tokenizer.encode([clean_caption(text, self.words) for text in texts], self.tokens, self.pad)


Reduction = Literal["global", "rank"]
"""Mean of the LM loss: over all tokens of an optimizer step, or, as in the reference, over each process's batch."""


def shared_count(micro_batches: Sequence[Batch], prompt: int, reduction: Reduction) -> Tensor | None:
    """Returns the mean number of predicted tokens per micro-batch, 0-dim; collective.

    The mean is over an optimizer step on all processes. Summed losses divided by it average to the mean over the step's
    tokens, however the step is split into micro-batches. Returns None if `reduction` is `rank`.
    """
    counts = [int(batch.text.mask[:, prompt:].sum()) for batch in micro_batches if batch.text is not None]
    return shared_mean(counts, reduction)


def shared_mean(counts: Sequence[int], reduction: Reduction) -> Tensor | None:
    """Returns the mean over micro-batches and processes of numbers of predicted tokens, 0-dim; collective.

    Returns None if `reduction` is `rank`.
    """
    if reduction == "rank":
        return None
    return all_reduce_mean(torch.tensor(sum(counts) / len(counts), device=device()))
