"""What the methods of a model take: one value or several, brought to lists."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from io import IOBase

from torch import Tensor

from blip.data.image_like import ImageLike
from blip.models.generation import Beam, Nucleus
from blip.shards.layout import has_surrogates

BATCHED = 4
"""Dimensions of a tensor of several images."""


def list_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Returns several images as a list, and one image as a list of one; a tensor `(B, 3, H, W)` holds several."""
    match images:
        case Tensor():
            return list(images) if images.ndim == BATCHED else [images]
        case memoryview() | IOBase():  # no images, as open_image says, but sequences
            return [images]  # pyright: ignore[reportReturnType]
        case str() | bytes() | bytearray():
            return [images]
        case Sequence() | Iterator():
            return list(images)
        case _:
            return [images]


def list_texts(texts: str | Sequence[str]) -> list[str]:
    """Returns texts in an order as a list, and one text as a list of one.

    Raises TypeError for what is no string, ValueError for characters that are none.
    """
    if isinstance(texts, Set | Mapping):
        raise TypeError(f"texts must have an order, is {type(texts).__name__}; give a list")
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise TypeError(f"a text must be a string, is {type(texts).__name__}")
    found = [texts] if isinstance(texts, str) else list(texts)
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, is {type(text).__name__}")
        if has_surrogates(text):
            raise ValueError(f"text {text[:40]!r}: has half of a character (a lone surrogate), which no encoding has")
    return found


def check_decoding(decoding: object) -> None:
    """Raises TypeError for what is no decoding."""
    if not isinstance(decoding, Beam | Nucleus | None):
        raise TypeError(f"decoding must be blip.Beam(...) or blip.Nucleus(...), is {decoding!r}")


def pair_up(images: list[ImageLike], texts: list[str], what: str) -> list[tuple[ImageLike, str]]:
    """Returns pairs of images and texts; a single value is paired with every value of the other side.

    Raises ValueError if the numbers differ otherwise.
    """
    if len(images) == 1:
        images = images * len(texts)
    elif len(texts) == 1:
        texts = texts * len(images)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} {what}: give as many of both, or one of either")
    return list(zip(images, texts, strict=True))
