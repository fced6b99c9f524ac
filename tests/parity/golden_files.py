"""The golden files: what the reference computes. `BLIP_GOLDEN` names another folder of them; sizes are read from the
files.
"""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from blip.batch import Batch, Tokens
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import MEAN, STD
from blip.models.bert import TextConfig
from blip.models.med import MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig

FOLDER = Path(os.environ.get("BLIP_GOLDEN", Path(__file__).parents[1] / "golden"))


class Golden:
    """A folder of golden files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta: dict[str, Any] = self.json("meta.json")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def io(self, name: str) -> dict[str, Tensor]:
        """Inputs and outputs of a run."""
        return load_file(self.folder / f"{name}.io.safetensors")

    def weights(self, name: str) -> str:
        return str(self.folder / f"{name}.weights.safetensors")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    def med(self, text: str = "med_config.json", **changes: Any) -> MEDConfig:
        """The model's sizes, without dropout."""
        meta, bert = self.meta, self.json(text)
        return MEDConfig(
            vision=VisionConfig(
                size=meta["image"], patch=meta["patch"], width=meta["vwidth"], depth=meta["vdepth"], heads=meta["heads"]
            ),
            text=TextConfig(
                vocab_size=meta["vocab_size"],
                width=bert["hidden_size"],
                depth=bert["num_hidden_layers"],
                heads=bert["num_attention_heads"],
                feed_forward=bert["intermediate_size"],
                positions=bert["max_position_embeddings"],
                eps=bert["layer_norm_eps"],
                dropout=0.0,
            ),
            embed=meta["pretrain"]["embed"],
            tokens=SpecialTokens(pad=meta["pad"], cls=meta["cls"], sep=meta["sep"], dec=meta["bos"], enc=meta["enc"]),
            **changes,
        )


def before_normalisation(images: Tensor) -> Tensor:
    """The pixel values in 0 to 255 that normalise to these images `(B, 3, H, W)`: golden inputs are noise that no
    picture holds.
    """
    return (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def batch_of(images: Tensor, text: Tokens, ids: Tensor | None = None, **extra: Any) -> Batch:
    keys = [str(i) for i in range(len(text.ids))]
    return Batch(keys, before_normalisation(images), text, torch.arange(len(keys)) if ids is None else ids, extra)


TOLERANCE = 1e-5
"""Relative to a tensor's largest magnitude: float32 sums round by their largest terms, not by their result.
"""


def assert_close(ours: Tensor, reference: Tensor, what: str = "") -> None:
    """Asserts that losses, logits or features agree to 1e-5 of the reference's largest magnitude."""
    difference = (ours.detach().reshape(reference.shape) - reference).abs().max()
    largest = reference.abs().max()
    assert largest.isfinite(), f"{what}: the reference is not finite"
    assert difference <= TOLERANCE * largest, (
        f"{what} differs by {difference:.1e} where its largest magnitude is {largest:.1e}"
    )


def assert_close_after_a_step(ours: Tensor, reference: Tensor, what: str) -> None:
    """Asserts that gradients, or weights after optimizer steps, agree to 1e-4 of their norm."""
    difference, size = (ours.detach().reshape(reference.shape) - reference).norm(), reference.norm()
    assert difference <= 1e-4 * size, f"{what} differs by {difference:.1e} of {size:.1e}"
