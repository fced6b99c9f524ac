"""Frozen image encoders: a layer's tokens of any vision model of timm or transformers (BLIP-2, section 3.3)."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from blip.config import Config, ConfigError, read_config
from blip.models.frozen import check_frozen_digest, frozen_digest, weights_type
from blip.models.weights.content import VISION_MODEL
from blip.models.weights.files import first_line
from blip.models.weights.source import fetched

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STACKS = ("blocks", "layers", "layer")
"""Names of the list of a vision transformer's blocks, in timm and transformers."""


class ImageEncoderConfig(Config):
    source: Annotated[str, VISION_MODEL] = "eva_giant_patch14_clip_224.laion400m"
    """A vision model of timm or transformers: a local folder with `config.json`, a store's URI, or a name on the hub,
    without an owner under `timm/`."""
    digest: str | None = None
    """Digest of the model's weights and configuration; set when a run starts, and checked on load."""
    size: int = Field(default=224, ge=1, le=4096)
    """Height and width of the images in pixels."""
    width: int = Field(default=1408, ge=1, le=65536)
    """Width of the tokens."""
    layer: int = Field(default=-2, le=-1, ge=-1000)
    """The layer whose output is used, before the final norm, counted from the end; -2 is the second last.

    Ignored for models that are no stack of transformer blocks, of which the final feature map is used.
    """
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the frozen weights. `auto` is bf16 on GPUs and fp32 on CPUs."""
    trained: bool = False
    """Train the image encoder too; its weights are then a part of the model."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of a trained image encoder of timm, rising linearly to this rate over the blocks."""
    checkpoint: bool = False
    """Recompute the activations of a trained image encoder in the backward pass, to save memory."""
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    """Epsilon of the trained LayerNorm over the tokens."""


class ImageEncoder(nn.Module, ABC):
    """A vision model, of which the tokens after one of its layers are used."""

    def __init__(self, network: nn.Module, layer: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.last = cut_after(network, layer)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Maps normalised images `(B, 3, H, W)` to the network's last features, before a classifier."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 images `(B, 3, H, W)` to tokens `(B, N, D)`; a transformer's [CLS] comes first, if it has one."""
        pixels = (images / 255 - self.mean) / self.std
        pixels = pixels.to(next(self.network.parameters()).dtype)
        if self.last is None:
            return tokens_of(self.features(pixels), getattr(self.network, "num_features", 0))
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        hook = self.last.register_forward_hook(keep)
        try:
            self.features(pixels)
        finally:
            hook.remove()
        return seen[-1]


class TimmEncoder(ImageEncoder):
    def features(self, pixels: Tensor) -> Tensor:
        return cast(Any, self.network).forward_features(pixels)


class TransformersEncoder(ImageEncoder):
    def features(self, pixels: Tensor) -> Tensor:
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        options = {"interpolate_pos_encoding": True} if takes_any_size else {}
        return self.network(pixels, **options).last_hidden_state


def load_image_encoder(cfg: ImageEncoderConfig) -> ImageEncoder:
    """Loads an image encoder with its weights. Raises WeightsError if they are not those of `cfg.digest`.

    Raises ConfigError if the source is no vision model, or its width or layers differ from the configuration.
    """
    with fetched(cfg.source, VISION_MODEL) as folder:
        check_frozen_digest(frozen_digest(folder), cfg.digest, "model.vision", cfg.source)
        check_width(folder, cfg)
        return build(folder, cfg, weights=True).to(torch.float32 if cfg.trained else weights_type(cfg.precision))


def with_digest(cfg: ImageEncoderConfig) -> ImageEncoderConfig:
    """Returns the configuration with the digest of the source's weights. Raises as `load_image_encoder`."""
    with fetched(cfg.source, VISION_MODEL) as folder:
        check_width(folder, cfg)
        found = frozen_digest(folder)
    check_frozen_digest(found, cfg.digest, "model.vision", cfg.source)
    return cfg.model_copy(update={"digest": found})


def check_width(folder: Path, cfg: ImageEncoderConfig) -> None:
    """Raises ConfigError if the tokens of a model in a folder are not as wide as the configuration says."""
    with torch.device("meta"):
        network = build(folder, cfg, weights=False).network
    about: Any = getattr(network, "config", network)
    found = about.hidden_sizes[-1] if hasattr(about, "hidden_sizes") else getattr(about, "hidden_size", None)
    found = found or about.num_features
    if found != cfg.width:
        raise ConfigError(
            f"model.vision.width is {cfg.width}, but the tokens of {cfg.source} are {found} wide: set "
            f"model.vision.width={found}, or name another image encoder"
        )


def build(folder: Path, cfg: ImageEncoderConfig, *, weights: bool) -> ImageEncoder:
    """Returns the vision model in a folder, with its weights or at random. Raises ConfigError if there is none."""
    described = read_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    try:
        if "architecture" in described:
            return timm_encoder(folder, cfg, weights)
        if "model_type" in described:
            return transformers_encoder(folder, cfg, weights)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:  # as the libraries report mistakes
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"model.vision.source {cfg.source}: cannot be loaded ({first_line(error)}); name a vision model of timm "
            "or transformers"
        ) from None
    raise ConfigError(
        f"model.vision.source {cfg.source}: its folder has no config.json that names an architecture of timm or a "
        "model_type of transformers; save the model with timm.models.save_for_hf or save_pretrained"
    )


def timm_encoder(folder: Path, cfg: ImageEncoderConfig, weights: bool) -> TimmEncoder:
    create = cast(Callable[..., Any], timm.create_model)
    make = partial(create, f"local-dir:{folder}", pretrained=weights, num_classes=0)
    options = {"drop_path_rate": cfg.drop_path} if cfg.trained else {}
    try:
        network = make(img_size=cfg.size, **options)
    except TypeError:  # convolutional networks take images of any size
        network = make(**options)
    if cfg.trained and cfg.checkpoint:
        network.set_grad_checkpointing()
    about = cast(Any, network.pretrained_cfg)
    return TimmEncoder(network, cfg.layer, about["mean"], about["std"])


def transformers_encoder(folder: Path, cfg: ImageEncoderConfig, weights: bool) -> TransformersEncoder:
    # local import: transformers comes with an extra
    from transformers import AutoConfig, AutoModel, Blip2VisionConfig, Blip2VisionModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config: Any = AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", config)
    if config.model_type == Blip2VisionConfig.model_type:  # which AutoModel does not know
        network = Blip2VisionModel.from_pretrained(folder) if weights else Blip2VisionModel(config)
    else:
        network = AutoModel.from_pretrained(folder, config=config) if weights else AutoModel.from_config(config)
    if "pixel_values" not in inspect.signature(network.forward).parameters:
        raise ConfigError(
            f"model.vision.source {cfg.source}: {type(network).__name__} takes no images; name a vision model of timm "
            "or transformers"
        )
    if cfg.trained and cfg.checkpoint:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    file = folder / "preprocessor_config.json"
    about = read_config(file) if file.is_file() else {}
    return TransformersEncoder(network, cfg.layer, about.get("image_mean", CLIP_MEAN), about.get("image_std", CLIP_STD))


def tokens_of(features: Tensor, width: int) -> Tensor:
    """Returns a feature map, `(B, D, H, W)` or `(B, H, W, D)`, or tokens, as tokens `(B, N, D)`."""
    if features.dim() < 4:
        return features
    channels_last = features if features.shape[-1] == width else features.permute(0, 2, 3, 1)
    return channels_last.flatten(1, 2)


def cut_after(network: nn.Module, layer: int) -> nn.Module | None:
    """Removes the blocks after a layer, and returns the layer's block; None if the network is no stack of blocks."""
    stacks = [
        part
        for name, part in network.named_modules()
        if name.rpartition(".")[2] in STACKS and isinstance(part, nn.ModuleList | nn.Sequential)
    ]
    if len(stacks) != 1:
        return None
    blocks = stacks[0]
    if -layer > len(blocks):
        raise ConfigError(
            f"model.vision.layer is {layer}, but the image encoder has {len(blocks)} layers: set it from -1 to "
            f"{-len(blocks)}"
        )
    del blocks[len(blocks) + layer + 1 :]
    return blocks[-1]
