"""What the methods of a model take: one value or several, brought to lists."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from blip.data.image_like import ImageLike
from blip.models.generation import Beam, Nucleus

BATCHED = 4
"""Dimensions of a tensor of several images."""


def list_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Returns several images as a list, and one image as a list of one; a tensor `(B, 3, H, W)` holds several."""
    if isinstance(images, Tensor):
        return list(images) if images.ndim == BATCHED else [images]
    if isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes | bytearray):
        return list(images)
    return [images]


def list_texts(texts: str | Sequence[str]) -> list[str]:
    """Returns a sequence of texts as a list, and one text as a list of one. Raises TypeError for what is no string."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise TypeError(f"a text must be a string, is {type(texts).__name__}")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, is {type(text).__name__}")
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
