"""Data sets whose truth is known, so that any text can be judged: for evaluation alone."""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from blip.config import ConfigError
from blip.data.datasets import shapes
from blip.data.manifest import Manifest

JUDGE = "judge"
"""The key of a manifest's `meta` that names who judges texts about its samples."""
SHAPES = "shapes"

Judge = Callable[[Mapping[str, Any], str], bool | None]
"""Whether a text is true of the sample whose `meta` is given; None where the sample does not tell."""


def judge_of(manifest: Manifest) -> Judge | None:
    """The judge that a manifest names; None where it names none, as data from the web does. Raises ConfigError for an unknown one."""
    name = manifest.meta.get(JUDGE)
    if name is None:
        return None
    if name == SHAPES:
        return judge_shapes
    raise ConfigError(f"manifest {manifest.name} of {manifest.root}: meta.{JUDGE} is {name!r}; it may be {SHAPES!r}, or missing")


def judge_shapes(meta: Mapping[str, Any], text: str) -> bool | None:
    """Whether a text is true of a scene of the embedded world."""
    truth = meta.get("truth")
    return shapes.is_true(truth, text) if is_scene(truth) else None


def is_scene(value: Any) -> TypeGuard[shapes.Scene]:
    """Whether a value from a sample's json has the form of a scene."""
    if not isinstance(value, dict) or "ground" not in value:
        return False
    objects = value.get("objects")
    return isinstance(objects, list) and all(isinstance(thing, dict) for thing in objects)
