"""Models of open_clip by the name of their architecture, with weights of their training in a file of one's own."""

import difflib
import json
from pathlib import Path
from typing import NamedTuple

from blip.config import ConfigError
from blip.models.weights.files import read_tensors, write_tensors
from blip.models.weights.load import prefixes, without_prefix
from blip.zoo.recognise import OPEN_CLIP

OPEN_CLIP_NAME = "open_clip:"
"""Begins a source `open_clip:ARCHITECTURE:WEIGHTS`, as `open_clip:ViT-B-32:runs/epoch_5.pt`."""
WEIGHTS_FILE = "open_clip_model.safetensors"


class OpenClipName(NamedTuple):
    architecture: str
    weights: str
    """A file here or in a store, or a tag of open_clip such as `laion2b_s34b_b79k`."""

    @classmethod
    def of(cls, source: str) -> "OpenClipName":
        """Raises ConfigError if it does not name an architecture of open_clip and weights."""
        import open_clip  # takes a second, and is needed here alone

        architecture, _, weights = source.removeprefix(OPEN_CLIP_NAME).partition(":")
        known = open_clip.list_models()
        if architecture not in known:
            near = difflib.get_close_matches(architecture, known, n=5, cutoff=0.3)
            raise ConfigError(f"model {source}: open_clip has no architecture {architecture!r}; near are {near}")
        if not weights:
            raise ConfigError(
                f"model {source}: name its weights, as {OPEN_CLIP_NAME}{architecture}:epoch_5.pt, or one of "
                f"open_clip's: {', '.join(open_clip.list_pretrained_tags_by_model(architecture)) or 'it has none'}"
            )
        return cls(architecture, weights)

    @property
    def hub_name(self) -> str:
        """The name on the hub of weights that open_clip has; empty for a file. Raises ConfigError if it is nowhere."""
        import open_clip

        if self.weights not in open_clip.list_pretrained_tags_by_model(self.architecture):
            return ""
        found = open_clip.get_pretrained_cfg(self.architecture, self.weights)
        name = found.get("hf_hub", "").rstrip("/")
        if not name:
            raise ConfigError(
                f"model {OPEN_CLIP_NAME}{self.architecture}:{self.weights}: is not on the hub; fetch "
                f"{found.get('url')} and name the file in place of {self.weights}"
            )
        return name

    def write(self, file: Path, folder: Path) -> None:
        """Writes the architecture and the weights of a file as a folder of open_clip. Raises WeightsError."""
        import open_clip

        tensors = read_tensors(file)
        [wrapped, *_] = [prefix for prefix in prefixes(tensors) if prefix == "module."] or [""]
        folder.mkdir()
        write_tensors(without_prefix(tensors, wrapped), folder / WEIGHTS_FILE)
        preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
        values = {"model_cfg": open_clip.get_model_config(self.architecture), "preprocess_cfg": preprocess}
        (folder / OPEN_CLIP).write_text(json.dumps(values, indent=1), encoding="utf-8")
