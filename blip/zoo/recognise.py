"""Recognises what a local folder or file holds by its files."""

import json
from pathlib import Path
from typing import Any, Literal

from blip.config import ConfigError, read_config
from blip.models.weights.files import SUFFIXES

ModelKind = Literal[
    "ours", "blip", "official", "blip2_matcher", "blip2_generator", "open_clip", "dual_encoder", "vision_language"
]
"""A model folder of ours; BLIP of transformers; a checkpoint of the reference; BLIP-2 of transformers, of the first and
of the second stage; CLIP and its like of open_clip or transformers; an image-to-text model of transformers."""
BLIP2_CLASSES: dict[str, ModelKind] = {
    "Blip2ForImageTextRetrieval": "blip2_matcher",
    "Blip2ForConditionalGeneration": "blip2_generator",
}

CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"


def recognise(path: Path) -> ModelKind:
    """Returns the kind of a model. Raises ConfigError, which says what was looked for, if it is none of them."""
    if path.is_file():
        if path.suffix in SUFFIXES:
            return "official"
        raise ConfigError(f"model {path}: a file of weights ends in {', '.join(SUFFIXES)}")
    if (path / CONFIG).is_file():
        return kind_of(read_config(path / CONFIG), path)
    if (path / OPEN_CLIP).is_file():
        return "open_clip"
    if official_file(path):
        return "official"
    raise ConfigError(
        f"model {path}: is no model folder, looked for {CONFIG}, {OPEN_CLIP}, and one file of weights "
        f"({', '.join(SUFFIXES)})"
    )


def kind_of(values: dict[str, Any], path: Path) -> ModelKind:
    """Returns the kind of a folder by the values of its `config.json`."""
    name = values.get("model_type")
    if is_ours(values):
        return "ours"
    if name == "blip":
        return "blip"
    if name == "blip-2":
        [written, *_] = values.get("architectures") or ["none"]
        if written in BLIP2_CLASSES:
            return BLIP2_CLASSES[written]
        raise ConfigError(f"model {path}: its class is {written}; of BLIP-2 known are {', '.join(BLIP2_CLASSES)}")
    if not isinstance(name, str):
        if (path / OPEN_CLIP).is_file():
            return "open_clip"
        raise ConfigError(
            f"model {path}: its {CONFIG} has neither task and model, as ours, nor transformers' model_type"
        )
    from transformers.models.auto import modeling_auto as auto  # takes seconds, and is needed here alone

    if name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vision_language"
    if name in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "dual_encoder"
    raise ConfigError(
        f"model {path}: model_type {name!r} neither writes texts of images nor embeds images and texts in this version "
        "of transformers"
    )


def is_ours(values: dict[str, Any]) -> bool:
    """Returns whether a `config.json` is that of a model folder of ours."""
    return "model" in values and isinstance(values.get("task"), dict)


def official_file(folder: Path) -> Path | None:
    """Returns the only file of weights in a folder, or None."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file()]
    return files[0] if len(files) == 1 else None


def settings_beside(path: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file of this name beside a checkpoint, empty if there is none."""
    file = (path if path.is_dir() else path.parent) / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
