"""Images as callers have them: paths, bytes, Pillow's, or tensors."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip.data.images import decode, to_upright_rgb
from blip.shards.sample import BadSample
from blip.storage import is_web_address

ImageLike = Image.Image | str | os.PathLike[str] | bytes | bytearray | Tensor
"""A Pillow image, the path of an encoded image, its bytes, or pixels `(3, H, W)`: uint8, or float from 0 to 1."""

ROUNDING = 0.05
"""How far floats may lie outside of 0 to 1: interpolation overshoots a little."""


def open_image(image: ImageLike) -> Image.Image:
    """Returns an image in RGB, upright by its EXIF orientation, with transparent pixels on white.

    Raises ValueError that names the image if it cannot be decoded, OSError if its file cannot be read.
    """
    try:
        match image:
            case Image.Image() if not all(image.size):
                raise ValueError(f"image {image_name(image)}: has no pixels, is {image.width} x {image.height}")
            case Image.Image():
                return to_upright_rgb(image)
            case bytes() | bytearray():
                return decode(bytes(image))
            case str() if not image:
                raise ValueError("an image's path is empty; give the path of a file")
            case str() if "://" in image:
                what = "is a web address" if is_web_address(image) else "lies in a store"
                raise ValueError(f"image {image}: {what}, which is not fetched; give its bytes")
            case str() | os.PathLike():
                return decode(Path(image).read_bytes())
            case Tensor():
                return from_tensor(image)
    except BadSample as error:
        raise ValueError(f"image {image_name(image)}: {error}") from None
    raise TypeError(
        f"an image must be a path, bytes, a Pillow image or a tensor, is {type(image).__name__}{way_out(image)}"
    )


def way_out(value: object) -> str:
    """Returns what to give in place of a value that is no image; empty if nobody knows."""
    if isinstance(value, np.ndarray):
        return "; give PIL.Image.fromarray of pixels, a list of paths" if value.ndim > 1 else "; give a list of it"
    if isinstance(value, memoryview):
        return "; give bytes of it"
    if callable(getattr(value, "read", None)):
        return "; give what its read() returns"
    return "; give a list of images" if isinstance(value, Iterable) else ""


def image_name(image: ImageLike) -> str:
    """Returns the path of an image, or its type if it has none."""
    if isinstance(image, str | os.PathLike):
        return str(image)
    return getattr(image, "filename", "") or f"of {type(image).__name__}"


def from_tensor(pixels: Tensor) -> Image.Image:
    """Returns the image of pixels `(3, H, W)`, uint8 or float from 0 to 1. Raises ValueError for another shape."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"an image's tensor must be (3, H, W), is {tuple(pixels.shape)}")
    if not pixels.numel():
        raise ValueError(f"an image's tensor must have pixels, is {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        low, high = pixels.amin().item(), pixels.amax().item()
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also if one is no number
            raise ValueError(
                f"an image's tensor of floats must be from 0 to 1, is from {low:.4g} to {high:.4g}; give uint8 for 0 "
                "to 255, and no normalised pixels"
            )
        pixels = (pixels.float().clamp(0, 1) * 255).round()
    elif pixels.dtype != torch.uint8:
        raise ValueError(f"an image's tensor must be uint8, or float from 0 to 1, is {pixels.dtype}")
    return Image.fromarray(pixels.to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy())
