"""The embedded data set: rendered scenes with ground truth.

A scene has one or two objects with shape, colour, size and place on a coloured ground. A small grammar generates
sentences about scenes and parses them, so whether a text is true can be decided. The truth is in `meta["truth"]`, for
evaluation alone.
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
