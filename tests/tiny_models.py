"""A captioner and a filter small enough to run in milliseconds, and pictures for them."""

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blip.data.tokenizer import Tokenizer
from blip.models.bert import TextConfig
from blip.models.med import MED, MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig
from blip.shards.sample import Sample
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import Captioning, CaptioningConfig
from blip.tasks.model_folder import save_model
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.text import TextLengths

SIZE = 16
TEXTS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("circle", "square")
]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 64)


def config() -> MEDConfig:
    words = tokenizer()
    return MEDConfig(
        vision=VisionConfig(size=SIZE, patch=8, width=16, depth=1, heads=2, init_std=0.25),
        text=TextConfig(
            vocab_size=words.vocab_size, width=16, depth=1, heads=2, feed_forward=32, positions=32, init_std=0.25
        ),
        tokens=SpecialTokens(pad=words.pad, cls=words.cls, sep=words.sep, dec=words.dec, enc=words.enc),
        embed=8,
    )


def captioner(seed: int = 0) -> Captioning:
    torch.manual_seed(seed)
    return Captioning(CaptioningConfig(prompt="a "), MED(config(), encoder=False), tokenizer()).eval()


def text_filter(seed: int = 1) -> Retrieval:
    torch.manual_seed(seed)
    cfg = RetrievalConfig(alignment=AlignmentConfig(queue=1), text=TextLengths(tokens=12))
    return Retrieval(cfg, MED(config(), decoder=False), tokenizer()).eval()


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE), **save) -> bytes:
    """Returns a picture of noise; no two are equal."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, **{"format": "PNG", **save})
    return file.getvalue()


def samples(count: int, start: int = 0) -> list[Sample]:
    return [
        Sample(f"{i:04d}", [picture(i)], [TEXTS[i % len(TEXTS)]], {"shown": i, "license": "cc0"})
        for i in range(start, start + count)
    ]


def model_folder(task: Captioning | Retrieval | Pretraining, path: Path) -> str:
    """Writes the task as a model folder."""
    save_model(task, path)
    return str(path)


def both(seed: int = 2) -> Pretraining:
    """Returns a pre-training task: captioner and filter in one."""
    torch.manual_seed(seed)
    cfg = PretrainingConfig(alignment=AlignmentConfig(queue=1), text=TextLengths(tokens=12))
    return Pretraining(cfg, MED(config()), tokenizer()).eval()
