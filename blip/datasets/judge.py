"""Ground truth: judges whether a text is true of a sample, for data sets whose truth is known. For evaluation alone."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from blip.config import ConfigError
from blip.datasets import shapes
from blip.shards.manifest import Manifest

JUDGE = "judge"
"""The key of a manifest's `meta` that names the data set's judge."""
SHAPES = "shapes"
NAMES = "names"
"""The judge of pictures whose names stand in the field `names` of their json."""

Judge = Callable[[Mapping[str, Any], str], bool | None]
"""Returns whether a text is true of the sample with this `meta`; None if the sample has no ground truth."""


def judge_of(manifest: Manifest) -> Judge | None:
    """Returns the manifest's judge; None if it names none, as for web data. Raises ConfigError if it is unknown."""
    name = manifest.meta.get(JUDGE)
    if name is None:
        return None
    if name == SHAPES:
        return judge_shapes
    if name == NAMES:
        return judge_names
    raise ConfigError(
        f"manifest {manifest.name} of {manifest.root}: meta.{JUDGE} is {name!r}; it may be {SHAPES!r}, {NAMES!r}, or "
        "missing"
    )


def judge_shapes(meta: Mapping[str, Any], text: str) -> bool | None:
    """Judges a text about a scene of the embedded data set."""
    truth = meta.get("truth")
    return shapes.is_true(truth, text) if is_scene(truth) else None


def judge_names(meta: Mapping[str, Any], text: str) -> bool | None:
    """Judges a text by a picture's names: it is true if it is one of them, up to case and punctuation."""
    names = meta.get(NAMES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return spelling(text) in map(spelling, names)


def spelling(text: str) -> list[str]:
    """Returns a text's words, which case and punctuation do not change."""
    return re.findall(r"\w+", text.lower())


def is_scene(value: Any) -> TypeGuard[shapes.Scene]:
    """Returns whether a value of a sample's json has the form of a scene."""
    if not isinstance(value, dict) or "ground" not in value:
        return False
    objects = value.get("objects")
    return isinstance(objects, list) and all(isinstance(thing, dict) for thing in objects)
