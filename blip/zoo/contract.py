"""What CapFilt asks of a captioner and of a filter, whoever made them.

A captioner gets images and their keys, and returns texts with log-probabilities. A filter gets images and their texts,
and returns scores. Implementations stand beside this file; any object with these methods will do.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image

from blip.shards.sample import BadSample

Determinism = Literal["sample", "shard"]
"""What a text or a score depends on, besides model and settings: its sample alone, or also the samples that share its
batch, which are those of its shard."""
ScoreName = Literal["match", "similarity"]
"""p(match), 0 to 1; cosine similarity, -1 to 1."""

MOST_OBLONG = 100
"""The largest ratio of an image's sides for models that keep it, whose memory it multiplies."""


@dataclass(frozen=True)
class View:
    """The form in which a model takes an image. Threads make it while earlier images are computed."""

    name: str
    """Views of one name are equal, and are made once for all models that ask for them."""
    make: Callable[[Image.Image], Any]
    """Maps an RGB image of any size to the view. Raises BadSample for one that the model cannot take."""


def check_proportions(image: Image.Image) -> None:
    """Raises BadSample if an image is longer than MOST_OBLONG times its width."""
    if max(image.size) > MOST_OBLONG * min(image.size):
        raise BadSample(f"image is more than {MOST_OBLONG} times as long as wide")


class Written(NamedTuple):
    """A text that a captioner wrote."""

    text: str
    log_probability: float
    """Of all its tokens under the model, with the end of the text and without the penalties of the decoding."""


class Scored(NamedTuple):
    """The scores of a text for an image; None for one that the filter does not compute."""

    match: float | None
    similarity: float | None


@dataclass
class ImageBatch:
    """A batch of images in the views that models asked for, and what models with shared parts computed of them."""

    rows: Sequence[Mapping[str, Any]]
    """The views of each image, by name."""
    batch: int
    """Models may pad to this number of images, since the last digits of results depend on the shape of a batch."""
    spent: Counter[str] = field(default_factory=Counter)
    """Nanoseconds by part: encode, decode, filter."""
    memo: dict[tuple[str, int], Any] = field(default_factory=dict)
    """What was computed of these images, by its name and the identity of the module that computed it."""

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, view: View) -> list[Any]:
        """Returns the images in one view."""
        return [row[view.name] for row in self.rows]

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time of a part to `spent`, and computes without gradients."""
        began = time.perf_counter_ns()
        with torch.inference_mode():
            yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.spent[what] += time.perf_counter_ns() - began


class Captioner(Protocol):
    """Writes texts of images."""

    @property
    def view(self) -> View:
        """The form in which it takes images."""
        ...

    @property
    def determinism(self) -> Determinism:
        """What its texts have depended on so far."""
        ...

    def write(self, images: ImageBatch, keys: Sequence[str], number: int) -> list[Written]:
        """Returns the `number`-th text of each image; its draws depend on the image's key and on `number`."""
        ...


class Filter(Protocol):
    """Scores texts of images."""

    @property
    def view(self) -> View:
        """The form in which it takes images."""
        ...

    @property
    def determinism(self) -> Determinism:
        """What its scores have depended on so far."""
        ...

    @property
    def gives(self) -> tuple[ScoreName, ...]:
        """The scores that it computes."""
        ...

    def score(self, images: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """Returns the scores of each image's texts; images may differ in their number of texts."""
        ...
