"""Random numbers per sample, independent of batch, worker and time."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_uniforms(keys: Sequence[str], seed: int, caption: int, count: int) -> Tensor:
    """Returns uniform numbers in [0, 1) `(B, count)` for the `caption`-th text of each sample.

    Each row comes from its own Philox counter, keyed by sample key, seed and caption number.
    """
    generators = [np.random.Generator(np.random.Philox(key=philox_key(key, seed, caption))) for key in keys]
    return torch.from_numpy(np.stack([generator.random(count, np.float32) for generator in generators]))


def philox_key(key: str, seed: int, caption: int) -> int:
    """Returns the 128-bit Philox key of a caption."""
    digest = hashlib.blake2b(f"{seed} {caption} {key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
