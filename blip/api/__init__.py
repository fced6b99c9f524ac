"""The public API, which `import blip` offers."""

from blip.api.loading import load
from blip.api.model import Embeddings, Match, Model, UnsupportedError
from blip.config import ConfigError
from blip.data.image_like import ImageLike
from blip.models.generation import Beam, Nucleus

__all__ = ["Beam", "ConfigError", "Embeddings", "ImageLike", "Match", "Model", "Nucleus", "UnsupportedError", "load"]
