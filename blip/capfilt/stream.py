"""Captioner and filters as generators over chunks of pairs (BLIP, section 3.3).

`with_scores(with_synthetic(chunks(...), captioner, 1), filters)`.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

from pydantic import Field, model_validator

from blip.capfilt.pairs import Pair, Text
from blip.capfilt.quality import TextFault
from blip.capfilt.rules import FATAL
from blip.capfilt.table import column, decoy_column
from blip.config import Config
from blip.models.generation import Beam, Decoding, Nucleus
from blip.zoo.contract import Captioner, Filter, ImageBatch
from blip.zoo.image_model import Precision


class StreamConfig(Config):
    batch: int = Field(default=64, ge=1, le=1_000_000)
    """Images per batch. A shard's last batch is padded, because the last digits of results depend on the shape."""
    captions: int = Field(default=1, ge=1, le=1000)
    """Synthetic texts per image."""
    decoding: Decoding = Nucleus()
    """Decoding of the synthetic texts. Models of transformers count `min_length` and `max_length` without the prompt.
    """
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seeds nucleus sampling, together with the sample's key."""
    precision: Precision = "float32"
    """Of our models; bfloat16 is at least twice as fast on GPUs and on CPUs with AVX512-BF16 or AMX. Other models have
    a `dtype` of their own."""

    decoys: bool = False
    """Also score each web text for another image of its batch. Such a pair is wrong, so these scores tell how many
    wrong texts pass a threshold: what a selection by `precision` reads. They depend on the batch, which is the shard's.
    """

    @model_validator(mode="after")
    def texts_differ(self) -> Self:
        if isinstance(self.decoding, Beam) and self.captions > 1:
            raise ValueError(
                f"captions is {self.captions}, but beam search has one best text: use nucleus decoding or one caption"
            )
        return self


@dataclass
class Chunk:
    """A batch of pairs, with their images as the models take them."""

    pairs: list[Pair]
    cfg: StreamConfig
    spent: Counter[str]
    """Nanoseconds by part: input, encode, decode, filter."""
    images: ImageBatch = field(init=False)
    """Those of the live pairs."""

    def __post_init__(self) -> None:
        self.images = ImageBatch([pair.views for pair in self.live], self.cfg.batch, self.spent)

    @property
    def live(self) -> list[Pair]:
        """The pairs that were not skipped."""
        return [pair for pair in self.pairs if pair.views]


def chunks(pairs: Iterable[Pair], cfg: StreamConfig, spent: Counter[str]) -> Iterator[Chunk]:
    """Yields pairs in order, in batches."""
    rest = iter(pairs)
    while True:
        began = time.perf_counter_ns()
        chunk = Chunk(list(islice(rest, cfg.batch)), cfg, spent)
        spent["input"] += time.perf_counter_ns() - began
        if not chunk.pairs:
            return
        yield chunk


def with_synthetic(stream: Iterable[Chunk], captioner: Captioner) -> Iterator[Chunk]:
    """Adds `captions` synthetic texts to each pair."""
    for chunk in stream:
        live = chunk.live
        for number in range(chunk.cfg.captions if live else 0):
            written = captioner.write(chunk.images, [pair.key for pair in live], number)
            for pair, (text, score) in zip(live, written, strict=True):
                faults: list[TextFault] = [] if text.strip() else ["empty"]
                pair.texts.append(Text("synthetic", text, faults, log_probability=rounded(score, 4, pair.key)))
        yield chunk


def with_scores(stream: Iterable[Chunk], filters: Mapping[str, Filter]) -> Iterator[Chunk]:
    """Adds the scores of each filter to each text, web and synthetic, by the names of the table's columns."""
    for chunk in stream:
        live = chunk.live
        for name, judge in filters.items() if live else ():
            found = judge.score(chunk.images, [[text.text for text in pair.texts] for pair in live])
            for pair, of_image in zip(live, found, strict=True):
                for text, scored in zip(pair.texts, of_image, strict=True):
                    if FATAL.intersection(text.faults):
                        continue
                    for kind in judge.gives:
                        text.scores[column(name, kind)] = rounded(getattr(scored, kind), 5, pair.key)
            if chunk.cfg.decoys:
                add_decoys(chunk, name, judge)
        yield chunk


def add_decoys(chunk: Chunk, name: str, judge: Filter) -> None:
    """Adds what a filter gives each web text for another image: the one that is half a batch away.

    Texts without another image, or whose other image has the same text, get none.
    """
    live = chunk.live
    away = len(live) // 2
    if not away:
        return
    owners = [live[place - away] for place in range(len(live))]
    texts = [[text for text in owner.texts if text.source == "web"] for owner in owners]
    found = judge.score(chunk.images, [[text.text for text in of_owner] for of_owner in texts])
    for pair, owner, of_owner, of_image in zip(live, owners, texts, found, strict=True):
        own = {spelling(text.text) for text in pair.texts if text.source == "web"}
        for text, scored in zip(of_owner, of_image, strict=True):
            if FATAL.intersection(text.faults) or spelling(text.text) in own:
                continue
            for kind in judge.gives:
                text.scores[decoy_column(column(name, kind))] = rounded(getattr(scored, kind), 5, owner.key)


def spelling(text: str) -> str:
    """Returns a text without what distinguishes no texts: case and outer spaces."""
    return text.strip().lower()


def rounded(score: float, digits: int, key: str) -> float:
    """Rounds off the digits that depend on the rest of the batch. Raises ValueError if the score is not finite."""
    if not math.isfinite(score):
        raise ValueError(
            f"sample {key!r}: a model gave {score} as its score; its weights are broken, or float32 is needed"
        )
    return round(score, digits)
