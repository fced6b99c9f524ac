"""Models small enough to test in milliseconds."""

import pytest
import torch

from blip.batch import Tokens
from blip.models.bert import TextConfig
from blip.models.med import MED, MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig


@pytest.fixture
def small() -> MEDConfig:
    """Two layers of each transformer, 19 words, images of 16 pixels."""
    return MEDConfig(
        vision=VisionConfig(size=16, patch=8, width=24, depth=2, heads=2, init_std=0.2),
        text=TextConfig(vocab_size=19, width=16, depth=2, heads=2, feed_forward=32, positions=12, init_std=0.3),
        embed=8,
        tokens=SpecialTokens(pad=0, cls=1, sep=2, dec=17, enc=18),
    )


@pytest.fixture
def med(small: MEDConfig) -> MED:
    torch.manual_seed(0)
    return MED(small).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> Tokens:
    ids = torch.tensor([[1, 5, 6, 7, 8, 2], [1, 9, 10, 2, 0, 0]])
    return Tokens(ids, ids != 0)
