"""Random draws that belong to a sample, not to a batch, a worker or a moment."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def uniforms(keys: Sequence[str], seed: int, caption: int, count: int) -> Tensor:
    """Draws in [0, 1) `(B, count)` for the `caption`-th text of each sample, from a Philox counter keyed by the three."""
    rows = [np.random.Generator(np.random.Philox(key=philox_key(key, seed, caption))).random(count, np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def philox_key(key: str, seed: int, caption: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {caption} {key}".encode(), digest_size=16).digest(), "little")
