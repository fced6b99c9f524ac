"""Pairs: an image of a shard, as it came, and the texts that were found for it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar

from torch import Tensor

from blip.capfilt.quality import Facts, QualityConfig, TextFault, inspect, text_faults
from blip.config import Config
from blip.data.layout import select_members
from blip.data.names import Members
from blip.data.sample import BadSample, Rejected, Sample, one_sample
from blip.data.shards import OpenShard
from blip.data.transforms import eval_transform

T = TypeVar("T")
R = TypeVar("R")

Source = Literal["web", "synthetic"]
MAX_CARRIED_CHARACTERS = 2048
"""Characters of a carried field that are kept."""


class CarriedConfig(Config):
    """Fields of a sample's json that are carried into the scores; nothing else of it is read."""

    licence: str = "license"
    url: str = "url"
    origin: str = "source"
    """The collection that a pair comes from, for thresholds by collection."""
    opt_out: str = "opt_out"
    """True where the owner does not want the image to be learnt from."""


@dataclass
class Text:
    """A text of an image; what models say of it is None until they are asked."""

    source: Source
    text: str
    faults: list[TextFault] = field(default_factory=list)
    match: float | None = None
    similarity: float | None = None
    log_probability: float | None = None


@dataclass
class Pair:
    """A sample: where its images and its json lie, facts about the image, its texts (web texts first), and the image for each model."""

    key: str
    members: Members
    """Places in the shard, without those of texts."""
    facts: Facts
    texts: list[Text]
    carried: dict[str, str]
    pixels: dict[int, Tensor] = field(default_factory=dict)
    """Height and width to uint8 `(3, H, W)`; empty where no model should look at the image."""


def read_pairs(
    file: OpenShard, pool: Executor, prepare: Callable[[Sample], Pair], number: int, rejected: Rejected
) -> Iterator[Pair]:
    """The pairs of a shard in their order, so many of them read and decoded in advance. Samples that cannot be are counted by reason."""

    def read(row: int) -> Pair | BadSample:
        try:
            sample = file.image_and_texts(row)
            with one_sample(sample.id):
                pair = prepare(sample)
            pair.members, _ = select_members(file.index[row][1], file.shard.layout, chosen=True)
            return pair
        except BadSample as e:
            return e

    for pair in map_ahead(pool, read, range(len(file)), number):
        if isinstance(pair, BadSample):
            rejected.add(pair)
        else:
            yield pair


def make_pair(
    sample: Sample, sizes: Iterable[int], quality: QualityConfig, carried: CarriedConfig, skip: Iterable[str]
) -> Pair:
    """Decodes a sample, as far as it can be decoded, for models that take images of `sizes`; those with faults to skip are not prepared."""
    facts, image = inspect(sample.images[0], quality)
    if len(sample.images) > 1:
        facts.faults.append("several")
    if sample.meta.get(carried.opt_out):
        facts.faults.append("opted_out")
    pair = Pair(
        sample.key,
        {},
        facts,
        web_texts(sample, quality),
        {name: carried_value(sample.meta.get(key)) for name, key in carried},
    )
    if image is not None and not set(skip).intersection(facts.faults):
        pair.pixels = {size: eval_transform(size)(image) for size in sizes}
    return pair


def web_texts(sample: Sample, quality: QualityConfig) -> list[Text]:
    """The texts that came with the image; one that is empty where there is none."""
    if not sample.texts:
        return [Text("web", "", ["not_utf8" if sample.text_fault == "text is not UTF-8" else "empty"])]
    return [Text("web", text, text_faults(text, quality)) for text in sample.texts]


def carried_value(value: Any) -> str:
    """A field of a sample's json as the scores have it."""
    return "" if value is None else str(value)[:MAX_CARRIED_CHARACTERS]


def map_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], number: int) -> Iterator[R]:
    """The function of each item in order, so many of them computed in advance."""
    rest = iter(items)
    running = deque(pool.submit(function, item) for item in islice(rest, number))
    while running:
        done = running.popleft().result()
        running.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield done
