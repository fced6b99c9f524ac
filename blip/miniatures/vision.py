"""The small image encoder: timm's ViT, which learns to name what is at each place of a scene."""

from pathlib import Path
from random import Random
from typing import Any

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models import save_for_hf
from torch import Tensor, nn

from blip.config import Config
from blip.data.images import decode
from blip.data.transforms import MEAN, STD, eval_transform, normalise
from blip.datasets import shapes
from blip.datasets.shapes.scenes import COLOURS, GROUNDS, PLACES, RADII, SHAPE_NAMES
from blip.miniatures.training import descend
from blip.results import Point

NOTHING = 0
"""The class of a place without a thing."""
FACTS: tuple[int, ...] = (len(GROUNDS), *(1 + len(names) for _ in PLACES for names in (SHAPE_NAMES, COLOURS, RADII)))
"""The number of classes of each fact of a scene: its ground, then shape, colour and size at each place."""


class MiniatureVisionConfig(Config):
    size: int = Field(default=32, ge=16, le=4096)
    """Height and width of the images in pixels."""
    patch: int = Field(default=8, ge=1, le=4096)
    width: int = Field(default=64, ge=1, le=65536)
    depth: int = Field(default=4, ge=1, le=1000)
    heads: int = Field(default=4, ge=1, le=1024)
    images: int = Field(default=8000, ge=1)
    """Scenes that are rendered and seen again and again."""
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=128, ge=1)
    lr: float = Field(default=3e-3, gt=0, le=1)


def train_vision(cfg: MiniatureVisionConfig, seed: int, two_objects: float, out: Path) -> list[Point]:
    """Trains the encoder on scenes, saves it as a timm folder, and returns the curve of its loss."""
    torch.manual_seed(seed)
    encoder: Any = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=cfg.size,
        patch_size=cfg.patch,
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.heads,
        num_classes=0,
    )
    nn.init.normal_(encoder.pos_embed, std=1.0)  # learns places early, as the preset of the bootstrap does
    head = nn.Linear(cfg.width, sum(FACTS))
    images, facts = scenes(cfg, seed, two_objects)
    draws = torch.Generator().manual_seed(seed)

    def loss_of() -> Tensor:
        rows = torch.randint(len(images), (cfg.batch,), generator=draws)
        features = encoder(normalise(images[rows]))
        return facts_loss(head(features), facts[rows])

    curve = descend(nn.ModuleList([encoder, head]), loss_of, cfg.steps, cfg.lr)
    save_for_hf(encoder, str(out), safe_serialization=True, data_config={"mean": MEAN, "std": STD})
    return curve


def scenes(cfg: MiniatureVisionConfig, seed: int, two_objects: float) -> tuple[Tensor, Tensor]:
    """Returns rendered scenes, uint8 `(N, 3, H, W)`, and the class of each of their facts `(N, F)`."""
    rng = Random(f"{seed} scenes")
    view = eval_transform(cfg.size)
    images, facts = [], []
    for _ in range(cfg.images):
        scene = shapes.random_scene(rng, two_objects)
        images.append(view(decode(shapes.render_scene(scene, rng, cfg.size))))
        facts.append(torch.tensor(facts_of(scene)))
    return torch.stack(images), torch.stack(facts)


def facts_of(scene: shapes.Scene) -> list[int]:
    """Returns the class of each fact of a scene, in the order of `FACTS`."""
    facts = [list(GROUNDS).index(scene["ground"])]
    there = {thing["place"]: thing for thing in scene["objects"]}
    for place in PLACES:
        thing = there.get(place)
        for name, names in (("shape", SHAPE_NAMES), ("colour", COLOURS), ("size", RADII)):
            facts.append(1 + list(names).index(thing[name]) if thing else NOTHING)
    return facts


def facts_loss(logits: Tensor, facts: Tensor) -> Tensor:
    """Returns the cross-entropy, summed over facts `(N, F)` and averaged over images."""
    parts = zip(logits.split(FACTS, dim=1), facts.unbind(1), strict=True)
    return torch.stack([F.cross_entropy(part, classes) for part, classes in parts]).sum()
