"""Image transforms: from RGB images to uint8 tensors, and to the image encoder's input."""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from blip.config import Config
from blip.data.augment import random_augment
from blip.data.images import MAX_PIXELS, MOST_PIXELS

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of CLIP's training images, which the ViT expects."""

Transform = Callable[[Image.Image], Tensor]


class TransformConfig(Config):
    """Transforms of a training image."""

    size: int = Field(default=224, ge=1)
    """Side of the square image, in pixels."""
    min_scale: float = Field(default=0.2, gt=0, le=1)
    """Smallest share of the area that a random crop keeps (0.2 in pre-training, 0.5 in fine-tuning); with 1, images are
    not cropped."""
    flip: bool = True
    """Mirror images left to right with probability 1/2."""
    augment: Literal["none", "corrected", "reference"] = "corrected"
    """RandomAugment; `reference` does not change brightness and sharpness, an oversight in BLIP's code."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """An image with more pixels is a bad sample, except baseline JPEGs, which are decoded smaller. Bounds memory:
    decoding takes up to 16 bytes a pixel."""


def train_transform(cfg: TransformConfig, rng: np.random.Generator) -> Transform:
    """Returns the transform to uint8 `(3, size, size)` with random crop, flip and RandomAugment drawn from `rng`."""

    def transform(image: Image.Image) -> Tensor:
        if cfg.min_scale < 1:
            image = image.resize((cfg.size, cfg.size), Image.Resampling.BICUBIC, random_box(image, cfg.min_scale, rng))
        else:
            image = resize(image, cfg.size)
        if cfg.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if cfg.augment != "none":
            image = random_augment(image, rng, cfg.augment)
        return to_tensor(image)

    return transform


def eval_transform(size: int) -> Transform:
    """Returns the transform of the whole image to uint8 `(3, size, size)`, regardless of its aspect ratio."""
    return lambda image: to_tensor(resize(image, size))


def resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def random_box(image: Image.Image, min_scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns a crop with `min_scale` to 1 of the area and an aspect ratio of 3/4 to 4/3, drawn as torchvision does."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x = int(rng.integers(width - w + 1))
            y = int(rng.integers(height - h + 1))
            return x, y, x + w, y + h
    # No crop fits a long and narrow image: return the largest centred one.
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    x = (width - w) // 2
    y = (height - h) // 2
    return x, y, x + w, y + h


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor) -> Tensor:
    """Returns the image encoder's input: uint8 images `(..., 3, H, W)` as float32 of mean 0 and deviation 1, on their
    device."""
    scale, shift = scale_and_shift(images.device)
    return torch.addcmul(shift, images.to(torch.float32), scale)


@cache
def scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the factor and the offset that normalise each channel, cached by device."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std
