"""Features of images: what a frozen image encoder gives, kept in shards in place of the images."""

from safetensors.torch import load, save
from torch import Tensor

from blip.shards.sample import BadSample

EXTENSION = "features"
"""The extension of a sample's features in a shard."""
META = "features"
"""The entry of a manifest's `meta` that says which image encoder made its features."""
NAME = "features"


def write_features(features: Tensor) -> bytes:
    """Returns features `(N, D)` of one image as bytes, in their own type."""
    return save({NAME: features.detach().cpu().contiguous()})


def read_features(data: bytes) -> Tensor:
    """Returns features `(N, D)` from bytes. Raises BadSample if they cannot be read."""
    try:
        features = load(data)[NAME]
    except Exception as e:  # damaged headers raise many types of exceptions
        raise BadSample("features cannot be read") from e
    if features.dim() != 2 or not features.isfinite().all():
        raise BadSample("features that are not finite numbers")
    return features
