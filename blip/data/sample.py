"""What every data set is made of: images and the texts that belong to them."""

from dataclasses import dataclass, field
from typing import Any


class BadSample(ValueError):  # noqa: N818
    """A sample that cannot be used. Its message is the reason alone, a few words without values: samples are counted by it."""


@dataclass
class Sample:
    """Encoded images (one, two, or the frames of a video), their texts, and what is known about them besides."""

    key: str
    images: list[bytes]
    texts: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    image_ext: str = "png"
    """`png`, `jpg` or `webp`; the same for all images."""
