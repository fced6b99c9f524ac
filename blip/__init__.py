"""BLIP: captions images, matches images with texts, answers questions, and bootstraps the models that do so.

    captioner = blip.load("runs/captioner")
    captioner.caption(["a.jpg", "b.jpg"])

The names below load on first use, so that `import blip` imports neither torch nor Pillow.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads of torch's sums spin for their turn before they sleep, by default so long that another program on the same
# cores brings them to a standstill. It is read when torch is imported, which is later; processes that are started from
# here inherit it. benchmarks/busy.py compares.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from blip.api import Beam, ConfigError, Embeddings, ImageLike, Match, Model, Nucleus, UnsupportedError, load
    from blip.capfilt.in_memory import capfilt

__all__ = [
    "Beam",
    "ConfigError",
    "Embeddings",
    "ImageLike",
    "Match",
    "Model",
    "Nucleus",
    "UnsupportedError",
    "capfilt",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'blip' has no attribute {name!r}")
    if name == "capfilt":
        return import_module("blip.capfilt")  # a package that can be called
    from blip import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
