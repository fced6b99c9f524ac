"""RandomAugment: two random operations on a training image (BLIP's variant of RandAugment, arXiv 1909.13719)."""

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Literal[
    "identity",
    "autocontrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
]
OPERATIONS: tuple[Operation, ...] = Operation.__args__
Affine = tuple[float, float, float, float, float, float]
"""Maps a pixel `(x, y)` to its source: `(a x + b y + c, d x + e y + f)`."""

OPERATIONS_PER_IMAGE = 2
STRENGTH = 0.5
"""Magnitude 5 of 10."""
FILL = (128, 128, 128)


def random_augment(
    image: Image.Image, rng: np.random.Generator, factors: Literal["corrected", "reference"]
) -> Image.Image:
    """Draws two operations with replacement and applies each with probability 1/2.

    `corrected` scales brightness and sharpness by 1 +- 0.45. In the reference the factor at this strength is 1.0, so
    they change nothing. All operations equal OpenCV's, up to one level of 255 where pixels are interpolated.
    """
    for _ in range(OPERATIONS_PER_IMAGE):
        operation = OPERATIONS[rng.integers(len(OPERATIONS))]
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            image = apply_operation(
                image, operation, sign, 1 + sign * 0.9 * STRENGTH if factors == "corrected" else 1.0
            )
    return image


def apply_operation(image: Image.Image, operation: Operation, sign: int, factor: float) -> Image.Image:
    """Applies one operation at the fixed strength, in the direction `sign`; brightness and sharpness use `factor`."""
    shear = sign * 0.3 * STRENGTH
    shift = sign * 10 * STRENGTH
    angle = sign * math.radians(30 * STRENGTH)
    match operation:
        case "identity":
            return image
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(factor)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(factor)
        case "shear_x":
            return warp(image, (1, shear, 0, 0, 1, 0))
        case "shear_y":
            return warp(image, (1, 0, 0, shear, 1, 0))
        case "translate_x":
            return warp(image, (1, 0, shift, 0, 1, 0))
        case "translate_y":
            return warp(image, (1, 0, 0, 0, 1, shift))
        case "rotate":
            x, y = (side / 2 for side in image.size)
            cos, sin = math.cos(angle), math.sin(angle)
            return warp(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def warp(image: Image.Image, source: Affine) -> Image.Image:
    """Resamples every pixel bilinearly from its source; outside of the image is grey.

    Coordinates are those of OpenCV, which the reference uses: pixel centres are whole numbers, and edges blend with the
    fill colour.
    """
    a, b, c, d, e, f = source
    framed = ImageOps.expand(image, 1, FILL)
    # Pillow's pixel centres are at halves, and the frame moves the source by one pixel.
    moved = (a, b, c + 1.5 - (a + b) / 2, d, e, f + 1.5 - (d + e) / 2)
    return framed.transform(image.size, Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR, fillcolor=FILL)
