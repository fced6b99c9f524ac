"""What can be wrong with an image or a text before any model looks at it."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from blip.config import Config
from blip.data.images import MAX_PIXELS, MOST_PIXELS, decode_with_facts
from blip.data.sample import BadSample

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


class HygieneConfig(Config):
    min_side: int = Field(default=64, ge=1)
    """Pixels; an image whose shorter side is less is `small`."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """An image of more is `too_large`; baseline JPEGs are reduced instead. Bounds memory: decoding takes up to 16 bytes a pixel."""
    max_aspect: float = Field(default=3.0, ge=1)
    """An image whose longer side is more than so many times the shorter one is `elongated`."""
    max_characters: int = Field(default=1000, ge=1)
    """A text of more is `long`."""


FAULTS: dict[str, ImageFault] = {
    "image is cut short": "truncated",
    "image has too many pixels": "too_large",
    "image has a side of more than 65535 pixels": "too_large",
    "image takes too much memory": "too_large",
}
"""The faults by the decoder's reasons; any other reason is `undecodable`."""


@dataclass
class Facts:
    """What is known of an image's bytes; size 0 and hash 0 where they hold no image."""

    sha256: str
    width: int = 0
    height: int = 0
    phash: int = 0
    faults: list[ImageFault] = field(default_factory=list)


def inspect(data: bytes, cfg: HygieneConfig) -> tuple[Facts, Image.Image | None]:
    """The facts about encoded bytes, and the RGB image in them if there is one."""
    facts = Facts(hashlib.sha256(data).hexdigest())
    try:
        decoded = decode_with_facts(data, cfg.max_pixels)
    except BadSample as e:
        facts.faults.append(FAULTS.get(str(e), "undecodable"))
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
    """64 bits that change little when an image is scaled or compressed: which of its 8 x 8 lowest frequencies are above their median.

    Bit for bit what `imagehash.phash` gives, unless two frequencies are equal.
    """
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (COSINES @ pixels @ COSINES.T).round(6)  # where two are equal, the last digits are the processor's own
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def text_faults(text: str, cfg: HygieneConfig) -> list[TextFault]:
    """What is wrong with a text as such."""
    if not text.strip():
        return ["empty"]
    return ["long"] if len(text) > cfg.max_characters else []
