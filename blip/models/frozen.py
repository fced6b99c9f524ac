"""Frozen models: beside the trained parameters, not among them, and known by digest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from blip.digest import value_digest
from blip.models.weights.files import WeightsError, tensors_digest

VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a model's `config.json` that differ between copies of one model."""


class Frozen(nn.Module):
    """A model that is used and never trained.

    Its parameters are in no `parameters()` and no `state_dict()`: optimizers, checkpoints and model folders leave them
    out. It moves with the model around it, and stays in evaluation mode.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        # past `nn.Module.__setattr__`, which would register it
        object.__setattr__(self, "network", network.requires_grad_(False).eval())

    network: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Keeps the network in evaluation mode."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn, recurse)
        return self


def frozen_digest(folder: Path) -> str:
    """Returns the digest of a model's tensors, configuration and tokenizer, independent of file format and location.

    Raises WeightsError if the folder holds no weights.
    """
    others = {}
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_bytes())
            others[name] = {key: value for key, value in values.items() if key not in VOLATILE}
    return value_digest([tensors_digest(folder), others])


def check_frozen_digest(found: str, expected: str | None, setting: str, source: str) -> None:
    """Raises WeightsError if a source of frozen weights holds other ones than those of the training."""
    if expected is not None and found != expected:
        raise WeightsError(
            f"{setting}.source {source} holds other weights than the model was trained with: its digest is "
            f"{found[:16]}, not {expected[:16]}; name the place of the same weights by {setting}.source"
        )


def weights_type(precision: str) -> torch.dtype:
    """Returns the type of frozen weights: `auto` is bfloat16 on GPUs and float32 on CPUs."""
    match precision:
        case "auto":
            return torch.bfloat16 if torch.cuda.is_available() else torch.float32
        case "bf16":
            return torch.bfloat16
        case _:
            return torch.float32
