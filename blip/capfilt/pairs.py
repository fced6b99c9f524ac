"""Pairs: an image of a shard, as it came, and the texts that were found for it."""

import json
import os
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from blip.capfilt.hygiene import Facts, HygieneConfig, TextFault, inspect, text_faults
from blip.config import Config
from blip.data.index import Index
from blip.data.layout import image_names
from blip.data.shards import ShardError
from blip.data.transforms import eval_transform

T = TypeVar("T")
R = TypeVar("R")

Source = Literal["web", "synthetic"]
Members = dict[str, bytes]
"""Extension to bytes."""


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
    """A sample: its members byte for byte, facts about the image, its texts (web texts first), and the image for each model's size."""

    key: str
    members: Members
    facts: Facts
    texts: list[Text]
    carried: dict[str, str]
    pixels: dict[int, Tensor] = field(default_factory=dict)
    """Height and width to uint8 `(3, H, W)`; empty where no model should look at the image."""


def read_members(path: Path, rejected: Counter[str]) -> Iterator[tuple[str, Members]]:
    """The samples of a tar with all their members. What is no sample with an image is counted by reason. Raises ShardError."""
    try:
        index = Index.scan(path, rejected)
    except tarfile.TarError as e:
        raise ShardError(f"it cannot be read as a tar: {e}") from e
    with path.open("rb") as file:
        for row in range(len(index)):
            key, members, *_ = index[row]
            yield key, {name: os.pread(file.fileno(), size, offset) for name, (offset, size) in members.items()}


def make_pair(
    sample: tuple[str, Members], sizes: Iterable[int], hygiene: HygieneConfig, carried: CarriedConfig, drop: Iterable[str]
) -> Pair:
    """Decodes a sample, as far as it can be decoded, for models that take images of `sizes`; those to be dropped are not prepared."""
    key, members = sample
    names = image_names(members)
    facts, image = inspect(members[names[0]], hygiene)
    meta = parse(members.get("json", b"{}"))
    if len(names) > 1:
        facts.faults.append("several")
    if meta.get(carried.opt_out):
        facts.faults.append("opted_out")
    pair = Pair(key, members, facts, web_texts(members, meta, hygiene), {name: str(meta.get(key, "")) for name, key in carried})
    if image is not None and not set(drop).intersection(facts.faults):
        pair.pixels = {size: eval_transform(size)(image) for size in sizes}
    return pair


def web_texts(members: Members, meta: dict[str, Any], hygiene: HygieneConfig) -> list[Text]:
    """The texts that came with the image: `txt`, or several under `texts` in its json; one that is empty where there is none."""
    if "txt" in members:
        try:
            texts = [members["txt"].decode()]
        except UnicodeDecodeError:
            return [Text("web", "", ["not_utf8"])]
    else:
        texts = [text for text in meta.get("texts", []) if isinstance(text, str)] or [""]
    return [Text("web", text, text_faults(text, hygiene)) for text in texts]


def parse(data: bytes) -> dict[str, Any]:
    """A sample's json, or nothing where it cannot be read: it is carried along in any case."""
    try:
        meta = json.loads(data)
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], number: int) -> Iterator[R]:
    """The function of each item in order, so many of them computed in advance."""
    rest = iter(items)
    running = deque(pool.submit(function, item) for item in islice(rest, number))
    while running:
        done = running.popleft().result()
        running.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield done
