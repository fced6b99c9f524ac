"""What a training run is known by: the inputs that determine its result."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip.data.tokenizer import Tokenizer
from blip.digest import value_digest
from blip.models.weights.content import MODEL, Content, named_sources
from blip.models.weights.files import tensors_digest
from blip.models.weights.source import fetched
from blip.runs.config import RunConfig
from blip.shards.manifest import Manifest
from blip.training.engine import TRAINING_FORMAT, precision

OPERATION = {
    "engine": True,
    "checkpoint": True,
    "answers": True,
    "max_gpu_hours": True,
    "loader": {"workers", "prefetch", "ranged", "cache", "cache_gb", "unexpected"},
    "init": {"vision", "text", "checkpoint"},
    "model": {"vision": {"source"}, "language_model": {"source"}},
}
"""Settings outside a run's identity: they do not affect the result, or a digest represents them."""


def identify(cfg: RunConfig, manifests: Iterable[Manifest], tokenizer: Tokenizer, init: Path | None) -> dict[str, Any]:
    """Returns the identity of a run: all inputs that determine its result, without placement, I/O settings or code."""
    sources = [("init", str(init), MODEL)] if init else named_sources(cfg.init)
    return {
        "format": TRAINING_FORMAT,
        "config": cfg.model_dump(mode="json", exclude=OPERATION),
        "precision": precision(cfg.engine),
        "data": [manifest.digest for manifest in manifests],
        "tokenizer": value_digest(json.loads(tokenizer.backend.to_str())),
        "init": {name: source_digest(source, content) for name, source, content in sources},
    }


def source_digest(source: str, content: Content) -> str:
    """Returns the digest of the tensors of a source of weights, independent of location and file format."""
    with fetched(source, content) as path:
        return tensors_digest(path)
