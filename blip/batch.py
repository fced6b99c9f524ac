"""Batches: the images and texts that the loader passes to a task."""

import hashlib
from dataclasses import dataclass, field, replace
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
    """A sample with its decoded image, uint8 `(3, H, W)`, or `(F, 3, H, W)` if it has several."""

    key: str
    image: Tensor
    texts: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    """The sample's id in the whole data set (keys may repeat across shards); empty if the key is unique."""


@dataclass
class Batch:
    """Stacked samples: uint8 images `(B, 3, H, W)` or `(B, F, 3, H, W)`, their texts, and what else a task adds."""

    keys: list[str]
    images: Tensor
    text: Tokens | None = None
    image_ids: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    """The samples' ids in the whole data set; the keys by default."""

    def __post_init__(self):
        self.ids = self.ids or self.keys

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, examples: list[Example], text: Tokens | None = None, **extra: Any) -> Self:
        """Stacks the images of examples; `image_ids` are hashes of the examples' ids."""
        ids = [e.id or e.key for e in examples]
        numbers = torch.tensor([hash_id(name) for name in ids])
        return cls([e.key for e in examples], torch.stack([e.image for e in examples]), text, numbers, extra, ids)

    def to(self, device) -> Self:
        extra = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.extra.items()}
        return replace(
            self,
            images=self.images.to(device),
            text=None if self.text is None else self.text.to(device),
            image_ids=None if self.image_ids is None else self.image_ids.to(device),
            extra=extra,
        )


def hash_id(name: str) -> int:
    """Returns a 56-bit hash of a sample's id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
