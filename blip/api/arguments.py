"""What the methods of a model take: one value or several, brought to lists."""

from collections.abc import Sequence

from blip.data.image_like import ImageLike


def list_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Returns a sequence of images as a list, and one image as a list of one."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def list_texts(texts: str | Sequence[str]) -> list[str]:
    """Returns a sequence of texts as a list, and one text as a list of one. Raises TypeError for what is no string."""
    if isinstance(texts, str):
        return [texts]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, is {type(text).__name__}")
    return list(texts)


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
