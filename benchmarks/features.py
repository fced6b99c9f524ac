"""Features: what kept features of the frozen image encoder save in the first stage of BLIP-2.

`python benchmarks/features.py` counts the operations of a training step on images and on their features, for the
paper's image encoders and its Q-Former. `--seconds --encoder NAME` times steps on this machine instead, with random
weights.
"""

import os
import time
from contextlib import nullcontext

import timm
import torch
import typer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from blip.batch import Batch, Tokens
from blip.data.tokenizer import Tokenizer
from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2Config, QFormerModel
from blip.models.image_encoder import CLIP_MEAN, CLIP_STD, ImageEncoderConfig, TimmEncoder
from blip.models.med import SpecialTokens
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.query_alignment import QueryAlignmentConfig

PAPER = ("vit_large_patch14_clip_quickgelu_224", "eva_giant_patch14_clip_224")


def main(
    encoder: list[str] = typer.Option(PAPER, help="Architectures of timm."),  # noqa: B008
    batch: int = typer.Option(4, help="Images of a step."),
    seconds: bool = typer.Option(False, help="Time steps instead of counting their operations."),
) -> None:
    """Prints the cost of a step on images and on features, and the ratio, for each image encoder."""
    for name in encoder:
        with torch.device("cpu" if seconds else "meta"):
            task = stage1(name)
        with nullcontext() if seconds else FakeTensorMode(allow_non_fake_inputs=True):  # without memory and computation
            task = task if seconds else task.to_empty(device="cpu")
            images = torch.zeros(batch, 3, 224, 224, dtype=torch.uint8)
            features = task.model.image_features(images)
            whole, kept = (cost(task, shown, seconds) for shown in (images, features))
        unit = "seconds of CPU" if seconds else "10^12 operations"
        print(f"{name}, batch {batch}: {whole:.3g} and {kept:.3g} {unit}, {whole / kept:.1f} times less")  # noqa: T201
    print(f"load {os.getloadavg()[0]:.1f}")  # noqa: T201


def stage1(name: str) -> Blip2Stage1:
    words = Tokenizer.train(["a red circle", "a blue square"], 100)
    network = timm.create_model(name, num_classes=0)
    sizes = Blip2Config(
        vision=ImageEncoderConfig(width=int(network.num_features)),  # pyright: ignore[reportArgumentType]
        text=TextConfig(vocab_size=30523),
        tokens=SpecialTokens(pad=words.pad, cls=words.cls, sep=words.sep, dec=30522, enc=30523),
    )
    cfg = Blip2Stage1Config(lm_reduction="rank", alignment=QueryAlignmentConfig(most_likely_negatives=True))
    model = QFormerModel(sizes, TimmEncoder(network, sizes.vision.layer, CLIP_MEAN, CLIP_STD))
    return Blip2Stage1(cfg, model, words).train()


def cost(task: Blip2Stage1, shown: torch.Tensor, seconds: bool) -> float:
    """Returns the cost of forward and backward pass: seconds of CPU of the second one, or 10^12 operations."""
    length = task.cfg.text.tokens
    text = Tokens(torch.zeros(len(shown), length, dtype=torch.long), torch.ones(len(shown), length, dtype=torch.bool))
    batch = Batch([str(i) for i in range(len(shown))], shown, text, torch.arange(len(shown)))

    def step() -> None:
        torch.stack(list(task(batch).values())).sum().backward()

    if seconds:
        step()
        began = time.process_time()
        step()
        return time.process_time() - began
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


if __name__ == "__main__":
    typer.run(main)
