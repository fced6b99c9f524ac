"""What travels from the loader to a task: images, texts and what is known about them."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Tokens:
    """Token ids `(B, L)` and their mask `(B, L)`, True where a token is real."""

    ids: Tensor
    mask: Tensor

    def to(self, device) -> "Tokens":
        return Tokens(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))

    def __getitem__(self, rows) -> "Tokens":
        return Tokens(self.ids[rows], self.mask[rows])


@dataclass
class Example:
    """A sample whose image is decoded, uint8 `(3, H, W)`, or `(F, 3, H, W)` of several; its texts; and what it says of itself."""

    key: str
    image: Tensor
    texts: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    """What the sample is known by among all, for keys may begin again in every shard; empty where the key alone is."""


@dataclass
class Batch:
    """Samples side by side: uint8 images `(B, 3, H, W)` or `(B, F, 3, H, W)`, their texts, and whatever the task needs beyond."""

    keys: list[str]
    images: Tensor
    text: Tokens | None = None
    image_ids: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    """What each sample is known by among all; where none is given, the keys."""

    def __post_init__(self):
        self.ids = self.ids or self.keys

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, examples: list[Example], text: Tokens | None = None, **extra: Any) -> Self:
        """Stacks the images of examples; an image is known by its example's id."""
        ids = [e.id or e.key for e in examples]
        numbers = torch.tensor([hash_id(name) for name in ids])
        return cls([e.key for e in examples], torch.stack([e.image for e in examples]), text, numbers, extra, ids)

    def to(self, device) -> Self:
        moved = {f.name: v.to(device) for f in fields(self) if hasattr(v := getattr(self, f.name), "to")}
        extra = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.extra.items()}
        return replace(self, **moved, extra=extra)


def hash_id(name: str) -> int:
    """A number that stands for a sample's id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
