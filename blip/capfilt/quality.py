"""Quality checks of images and texts that need no model."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from blip.config import Config
from blip.data.images import MAX_PIXELS, MOST_PIXELS, decode_with_facts
from blip.shards.sample import BadSample

ImageFault = Literal[
    "undecodable",
    "truncated",
    "too_large",
    "several",
    "small",
    "elongated",
    "not_rgb",
    "animated",
    "opted_out",
    "duplicate",
    "near_duplicate",
]
TextFault = Literal["empty", "long", "not_utf8", "repeated"]


class QualityConfig(Config):
    min_side: int = Field(default=64, ge=1)
    """Pixels; an image with a shorter side below this is `small`."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """An image with more pixels is `too_large`; baseline JPEGs are decoded at reduced size instead.
    Bounds memory: decoding takes up to 16 bytes per pixel."""
    max_aspect: float = Field(default=3.0, ge=1)
    """An image with a larger ratio of longer to shorter side is `elongated`."""
    max_characters: int = Field(default=1000, ge=1)
    """A text with more characters is `long`."""


FAULT_BY_REASON: dict[str, ImageFault] = {
    "image is cut short": "truncated",
    "image has too many pixels": "too_large",
    "image has a side of more than 65535 pixels": "too_large",
    "image takes too much memory": "too_large",
}
"""Fault for each error message of the decoder; any other message is `undecodable`."""


@dataclass
class Facts:
    """Properties of an encoded image; size and hash are 0 if it cannot be decoded."""

    sha256: str
    width: int = 0
    height: int = 0
    phash: int = 0
    faults: list[ImageFault] = field(default_factory=list)


def inspect(data: bytes, cfg: QualityConfig) -> tuple[Facts, Image.Image | None]:
    """Returns the facts of an encoded image, and its RGB image or None if it cannot be decoded."""
    facts = Facts(hashlib.sha256(data).hexdigest())
    try:
        decoded = decode_with_facts(data, cfg.max_pixels)
    except BadSample as e:
        facts.faults.append(FAULT_BY_REASON.get(str(e), "undecodable"))
        return facts, None
    facts.width, facts.height = decoded.size
    facts.phash = perceptual_hash(decoded.image)
    found: dict[ImageFault, bool] = {
        "small": min(decoded.size) < cfg.min_side,
        "elongated": max(decoded.size) > cfg.max_aspect * min(decoded.size),
        "not_rgb": decoded.mode != "RGB",
        "animated": decoded.animated,
    }
    facts.faults.extend(fault for fault, is_so in found.items() if is_so)
    return facts, decoded.image


COSINES = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))
"""The 8 lowest rows `(8, 32)` of a discrete cosine transform (type II) of 32 values, unscaled."""


def perceptual_hash(image: Image.Image) -> int:
    """Returns a 64-bit hash that scaling and compression change little.

    Each bit tells whether one of the 8 x 8 lowest DCT frequencies is above their median. Equals `imagehash.phash`
    bit for bit, unless two frequencies are equal.
    """
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (COSINES @ pixels @ COSINES.T).round(6)  # the last digits depend on the processor
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def text_faults(text: str, cfg: QualityConfig) -> list[TextFault]:
    """Returns the faults of a text."""
    if not text.strip():
        return ["empty"]
    return ["long"] if len(text) > cfg.max_characters else []
