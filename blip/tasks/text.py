"""How texts become model inputs and tokens are counted, the same for every task that reads or writes them."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from blip.config import Config
from blip.distributed import all_reduce_mean
from blip.objectives.language_modeling import IGNORED


class TextLengths(Config):
    words: int = Field(default=30, ge=1)
    """Words kept of a text."""
    tokens: int = Field(default=30, ge=2)
    """Tokens kept of a text, [CLS] and [SEP] counted."""
    pad: Literal["longest", "max"] = "max"
    """Pad to the longest text of the batch, or always to `tokens`: shapes that stay suit GPUs and batches gathered over ranks."""


def shared_count(targets: Tensor, reduction: Literal["global", "rank"]) -> Tensor | None:
    """The number of predicted tokens to divide by so that the mean over ranks is the mean over all their tokens."""
    if reduction == "rank":
        return None
    return all_reduce_mean((targets != IGNORED).sum().to(torch.float32))
