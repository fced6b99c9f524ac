"""The embedded data set: a small world of rendered scenes whose truth is known.

A scene has one or two objects with shape, colour, size and place on a coloured ground; sentences of a small grammar describe it, and since
the same grammar reads sentences, any text can be judged. The truth travels in `meta["truth"]` and is for evaluation alone.
"""

from blip.data.datasets.shapes.scenes import Scene, Thing, draw, render
from blip.data.datasets.shapes.sentences import caption, is_true
from blip.data.datasets.shapes.splits import ShapesConfig, gold, test, web

__all__ = ["Scene", "ShapesConfig", "Thing", "caption", "draw", "gold", "is_true", "render", "test", "web"]
