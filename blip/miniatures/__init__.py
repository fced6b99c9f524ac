"""Small models in place of the frozen ones that BLIP-2 joins: an image encoder and two language models.

They are trained in a minute on the world of shapes, where others trained for weeks on what the web holds. Their folders
are those of timm and transformers, so that they are loaded as any other frozen model.
"""

from blip.miniatures.making import MiniaturesConfig, make_miniatures

__all__ = ["MiniaturesConfig", "make_miniatures"]
