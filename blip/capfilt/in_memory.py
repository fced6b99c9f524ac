"""CapFilt of pairs in memory, without shards, jobs or a store."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from blip.capfilt.stream import rounded
from blip.data.image_like import ImageLike, open_image
from blip.models.generation import Beam, Decoding, Nucleus
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.contract import Captioner, Filter, ImageBatch
from blip.zoo.load import load_captioner, load_filter
from blip.zoo.source import model_folder, naming


@runtime_checkable
class BothRoles(Protocol):
    """A model that is loaded already, such as `blip.load` returns."""

    def as_captioner(self, decoding: Decoding, seed: int) -> Captioner: ...

    def as_filter(self) -> Filter: ...


ModelOrSource = str | os.PathLike[str] | BothRoles
"""A source of a model (`blip.load`), or a loaded one; others are given as Captioner or Filter."""


@dataclass(frozen=True)
class LabelledText:
    """A text of an image with its scores; None for one that was not computed."""

    source: Literal["web", "synthetic"]
    text: str
    match: float | None
    """p(match), 0 to 1."""
    similarity: float | None
    """Cosine similarity, -1 to 1."""
    log_probability: float | None
    """Of a synthetic text under the captioner."""
    kept: bool
    """Whether its score reaches the threshold."""


def capfilt(
    pairs: Iterable[tuple[ImageLike, str]],
    captioner: ModelOrSource | Captioner,
    filter: ModelOrSource | Filter,
    *,
    threshold: float = 0.5,
    by: Literal["match", "similarity"] = "match",
    decoding: Decoding | None = None,
    captions: int = 1,
    seed: int = 42,
    batch_size: int = 32,
) -> list[list[LabelledText]]:
    """Returns for each pair of an image and its text that text and `captions` written ones, scored and decided upon.

    The draws of a caption depend on `seed` and the position of its pair. `by` is the score that `threshold` is of.
    Raises ConfigError if a model does not suit its role, ValueError for an image that cannot be decoded or a score that
    the filter does not compute.
    """
    if batch_size < 1 or captions < 0:
        raise ValueError(f"batch_size is {batch_size} and captions {captions}: they must be at least 1 and 0")
    if captions > 1 and isinstance(decoding, Beam):
        raise ValueError(f"captions is {captions}, but beam search has one best text: use blip.Nucleus")
    writer = captioner_of(captioner, decoding or Nucleus(), seed)
    judge = filter_of(filter)
    if by not in judge.gives:
        raise ValueError(f"by is {by!r}, but this filter computes {', '.join(judge.gives)}")
    found: list[list[LabelledText]] = []
    for start, part in batches(pairs, batch_size):
        views = [writer.view, judge.view]
        check_pairs(part)
        opened: list[Image.Image] = [open_image(image) for image, _ in part]
        images = ImageBatch([{view.name: view.make(image) for view in views} for image in opened], batch_size)
        keys = [str(start + row) for row in range(len(part))]
        written = [writer.write(images, keys, number) for number in range(captions)]
        texts = [[text, *(of_number[row].text for of_number in written)] for row, (_, text) in enumerate(part)]
        for row, scores in enumerate(judge.score(images, texts)):
            chances = [None, *(rounded(of_number[row].log_probability, 4, keys[row]) for of_number in written)]
            found.append(
                [
                    LabelledText(
                        "synthetic" if number else "web",
                        text,
                        *score,
                        chances[number],
                        bool(text.strip()) and getattr(score, by) >= threshold,
                    )
                    for number, (text, score) in enumerate(zip(texts[row], scores, strict=True))
                ]
            )
    return found


def check_pairs(pairs: Sequence[object]) -> None:
    """Raises TypeError for what is no pair of an image and a text."""
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
            raise TypeError(f"a pair must be an image and its text, is {str(pair)[:80]}")


def batches(pairs: Iterable[tuple[ImageLike, str]], size: int) -> Iterator[tuple[int, Sequence[tuple[ImageLike, str]]]]:
    """Yields the pairs in batches, each with the position of its first."""
    rest, start = iter(pairs), 0
    while part := list(islice(rest, size)):
        yield start, part
        start += len(part)


def captioner_of(model: ModelOrSource | Captioner, decoding: Decoding, seed: int) -> Captioner:
    """Returns a captioner. Raises ConfigError if the model cannot caption."""
    if isinstance(model, str | os.PathLike):
        folder = model_folder(source := os.fspath(model))
        with naming(source, folder, "captioner"):
            return load_captioner(folder, decoding, seed, "float32", VisionLanguageConfig())
    if isinstance(model, BothRoles):
        return model.as_captioner(decoding, seed)
    check_role(model, "captioner", "write")
    return model


def check_role(model: object, role: str, method: str) -> None:
    """Raises TypeError for what is no model."""
    if not hasattr(model, method):
        raise TypeError(f"{role} must be a model's source, what blip.load returns, or a {role}, is {model!r}"[:300])


def filter_of(model: ModelOrSource | Filter) -> Filter:
    """Returns a filter. Raises ConfigError if the model cannot score texts."""
    if isinstance(model, str | os.PathLike):
        folder = model_folder(source := os.fspath(model))
        with naming(source, folder, "filter"):
            return load_filter(folder, "float32", DualEncoderConfig())
    if isinstance(model, BothRoles):
        return model.as_filter()
    check_role(model, "filter", "score")
    return model
