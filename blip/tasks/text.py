"""How texts become model inputs and tokens are counted, the same for every task that reads or writes them."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from blip.batch import Batch
from blip.config import Config
from blip.distributed import all_reduce_mean, device


class TextLengths(Config):
    words: int = Field(default=30, ge=1, le=1_000_000)
    """Words kept of a text."""
    tokens: int = Field(default=30, ge=3, le=1_000_000)
    """Tokens kept of a text, [CLS] and [SEP] counted."""
    pad: Literal["longest", "max"] = "max"
    """Pad to the longest text of the batch, or always to `tokens`: shapes that stay suit GPUs and batches gathered over
    ranks.
    """


Reduction = Literal["global", "rank"]
"""LM is the mean over all tokens of an optimizer step, or as in the reference that of each process's own batch."""


def shared_count(micro_batches: Sequence[Batch], prompt: int, reduction: Reduction) -> Tensor | None:
    """Predicted tokens of a micro-batch on average, 0-dim, over all those of an optimizer step on all processes;
    collective.

    Losses divided by it have the mean over all the step's tokens as their mean, however the step is cut into
    micro-batches.
    """
    if reduction == "rank":
        return None
    tokens = sum(int(batch.text.mask[:, prompt:].sum()) for batch in micro_batches if batch.text is not None)
    return all_reduce_mean(torch.tensor(tokens / len(micro_batches), device=device()))
