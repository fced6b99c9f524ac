"""A tokenizer of a few words, and model sizes to go with it."""

import pytest
import torch

from blip.batch import Batch, Example
from blip.data.tokenizer import Tokenizer
from blip.models.bert import TextConfig
from blip.models.med import MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig
from blip.tasks.config import TaskConfig
from blip.tasks.task import Task

CAPTIONS = ["a red circle", "a blue square", "a green ring", "the yellow cross"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*CAPTIONS, "what color is it", "yes", "no"], 64)


@pytest.fixture(scope="session")
def sizes(tokenizer: Tokenizer) -> MEDConfig:
    return MEDConfig(
        vision=VisionConfig(size=16, patch=8, width=16, depth=1, heads=2, init_std=0.2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=1,
            heads=2,
            feed_forward=32,
            positions=40,
            init_std=0.3,
            dropout=0.0,
        ),
        embed=8,
        tokens=SpecialTokens(
            pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc
        ),
    )


@pytest.fixture
def make(tokenizer: Tokenizer, sizes: MEDConfig):
    """Builds a task from its configuration, with a fixed seed."""

    def make(cfg: TaskConfig) -> Task:
        torch.manual_seed(0)
        return cfg.build_task(cfg.build_model(sizes), tokenizer)

    return make


@pytest.fixture
def batch_of():
    """Returns a batch of examples; equal keys have equal images."""

    def batch_of(task: Task, keys: str = "abcd") -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = {
            key: torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8) for key in sorted(set(keys))
        }
        return task.collate([Example(key, images[key], [CAPTIONS[i % 4]]) for i, key in enumerate(keys)])

    return batch_of
