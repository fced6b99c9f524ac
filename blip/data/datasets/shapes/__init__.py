"""The embedded data set: a small world of rendered scenes whose truth is known.

A scene has one or two objects with shape, colour, size and place on a coloured ground; sentences of a small grammar describe it, and since
the same grammar reads sentences, any text can be judged. The truth travels in `meta["truth"]` and is for evaluation alone.
"""

from blip.data.datasets.shapes.scenes import Scene, Thing, random_scene, render_scene
from blip.data.datasets.shapes.sentences import is_true, write_caption
from blip.data.datasets.shapes.splits import ShapesConfig, gold_samples, test_samples, web_samples

__all__ = [
    "Scene",
    "ShapesConfig",
    "Thing",
    "gold_samples",
    "is_true",
    "random_scene",
    "render_scene",
    "test_samples",
    "web_samples",
    "write_caption",
]
