"""Pairs: an image of a shard with its web and synthetic texts."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from blip.capfilt.quality import Facts, QualityConfig, TextFault, inspect, text_faults
from blip.config import Config
from blip.results import Source
from blip.shards.layout import NOT_UTF8, select_members
from blip.shards.names import Members
from blip.shards.reading import OpenShard
from blip.shards.sample import BadSample, Rejected, Sample, one_sample
from blip.zoo.contract import View

T = TypeVar("T")
R = TypeVar("R")

MAX_CARRIED_CHARACTERS = 2048
"""Longer carried fields are cut off."""


class CarriedConfig(Config):
    """The fields of a sample's json that are copied to the table of scores; others are ignored."""

    licence: str = "license"
    url: str = "url"
    origin: str = "source"
    """The collection of the pair, for thresholds by collection."""
    opt_out: str = "opt_out"
    """True if the owner objects to training on the image."""


@dataclass
class Text:
    """A text of an image; `scores` holds what filters have computed, by column of the table."""

    source: Source
    text: str
    faults: list[TextFault] = field(default_factory=list)
    log_probability: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Pair:
    """A sample: member locations, image facts, texts (web texts first), and the image as the models take it."""

    key: str
    members: Members
    """Locations of the images and the json in the shard."""
    facts: Facts
    texts: list[Text]
    carried: dict[str, str]
    views: dict[str, Any] = field(default_factory=dict)
    """The views of the image by name; empty if it is skipped."""


def read_pairs(
    file: OpenShard, pool: Executor, prepare: Callable[[Sample], Pair], number: int, rejected: Rejected
) -> Iterator[Pair]:
    """Yields a shard's pairs in order, reading `number` of them ahead. Unreadable samples are counted in `rejected`."""

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
    sample: Sample, views: Iterable[View], quality: QualityConfig, carried: CarriedConfig, skip: Iterable[str]
) -> Pair:
    """Makes a pair of a sample, with the views of its image unless that has one of the faults in `skip`."""
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
        for view in views:
            if view.name not in pair.views:
                pair.views[view.name] = view.make(image)
    return pair


def web_texts(sample: Sample, quality: QualityConfig) -> list[Text]:
    """Returns the texts that came with the image, or one empty text if there is none."""
    if not sample.texts:
        return [Text("web", "", ["not_utf8" if sample.text_fault == NOT_UTF8 else "empty"])]
    return [Text("web", text, text_faults(text, quality)) for text in sample.texts]


def carried_value(value: Any) -> str:
    """Formats a field of a sample's json for the table of scores."""
    return "" if value is None else str(value)[:MAX_CARRIED_CHARACTERS]


def map_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], number: int) -> Iterator[R]:
    """Yields `function(item)` in order, with up to `number` calls running ahead."""
    rest = iter(items)
    running = deque(pool.submit(function, item) for item in islice(rest, number))
    while running:
        done = running.popleft().result()
        running.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield done
