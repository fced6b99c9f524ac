"""A model of ours with the image tokens of a batch, which models with shared parts compute once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from blip.data.transforms import eval_transform
from blip.models.blip2 import QueriedImages
from blip.models.med import MED
from blip.zoo.contract import Determinism, ImageBatch, View

Precision = Literal["float32", "bfloat16"]
OwnT = TypeVar("OwnT", bound=MED | QueriedImages)


class ImageModel(ABC, Generic[OwnT]):
    determinism: Determinism = "sample"

    def __init__(self, model: OwnT, precision: Precision):
        self.model = model
        self.precision = precision
        self.size = model.cfg.vision.size
        self.view = View(f"{self.size} pixels", eval_transform(self.size))

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return next(self.model.parameters()).device

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The module whose identity tells which models share image tokens."""

    @abstractmethod
    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Maps pixels `(batch, 3, H, W)` from 0 to 255 to image tokens `(batch, N, D)`."""

    @contextmanager
    def computing(self, images: ImageBatch, what: str) -> Iterator[None]:
        """Adds the time of a part to `spent`; runs it in the configured precision, without gradients."""
        half = self.precision == "bfloat16"
        with images.timed(what), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            yield

    def encode(self, images: ImageBatch) -> Tensor:
        """Returns image tokens `(batch, N, D)`, the images first, then padding."""
        part = ("tokens", id(self.encoder))
        if part not in images.memo:
            with self.computing(images, "encode"):
                pixels = torch.zeros(images.batch, 3, self.size, self.size, dtype=torch.uint8)
                for row, image in enumerate(images.of(self.view)):
                    pixels[row] = image
                images.memo[part] = self.image_tokens(pixels.to(self.device))
        return images.memo[part]
