"""Features: what kept features of the frozen image encoder save in the first stage of BLIP-2.

`python benchmarks/features.py [--encoder vit_large_patch14_clip_quickgelu_224] [--batch 4]` makes an image encoder of
timm with random weights and the paper's Q-Former, and times training steps on images and on their features.
"""

import os
import tempfile
import time
from pathlib import Path

import timm
import torch
import typer
from timm.models import save_for_hf

from blip.batch import Batch, Tokens
from blip.data.tokenizer import Tokenizer
from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2Config
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.med import SpecialTokens
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config


def main(
    encoder: str = typer.Option("vit_large_patch14_clip_quickgelu_224", help="An architecture of timm."),
    batch: int = typer.Option(4, help="Images of a step."),
    steps: int = typer.Option(3, help="Steps that are timed, after one that is not."),
) -> None:
    """Prints seconds of wall clock and of CPU for a step on images and on features, and the ratio."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        network = timm.create_model(encoder, num_classes=0)
        save_for_hf(network, folder, safe_serialization=True)
        task = stage1(folder, int(network.num_features))  # pyright: ignore[reportArgumentType]
        del network
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    features = task.model.image_features(images)
    timed = {
        what: seconds(task, of(task, shown), steps) for what, shown in (("images", images), ("features", features))
    }
    for what, (wall, cpu) in timed.items():
        print(f"{encoder}, batch {batch}, {what}: {wall:.2f} s a step, {cpu:.2f} of CPU")  # noqa: T201
    (wall, cpu), (fast, fast_cpu) = timed["images"], timed["features"]
    print(f"{wall / fast:.1f} times faster, {cpu / fast_cpu:.1f} times less CPU; load {os.getloadavg()[0]:.1f}")  # noqa: T201


def stage1(folder: str, width: int) -> Blip2Stage1:
    words = Tokenizer.train(["a red circle", "a blue square"], 100)
    sizes = Blip2Config(
        vision=ImageEncoderConfig(source=str(Path(folder)), width=width),
        text=TextConfig(vocab_size=30523),
        tokens=SpecialTokens(pad=words.pad, cls=words.cls, sep=words.sep, dec=30522, enc=30523),
    )
    cfg = Blip2Stage1Config(lm_reduction="rank")
    return cfg.build_task(cfg.model_from(sizes), words).train()


def of(task: Blip2Stage1, shown: torch.Tensor) -> Batch:
    size, length = len(shown), task.cfg.text.tokens
    text = Tokens(torch.randint(200, 30000, (size, length)), torch.ones(size, length, dtype=torch.bool))
    return Batch([str(i) for i in range(size)], shown, text, torch.arange(size))


def seconds(task: Blip2Stage1, batch: Batch, steps: int) -> tuple[float, float]:
    """Returns seconds of wall clock and of CPU for a training step, without the optimizer's own part."""
    wall = cpu = 0.0
    for step in range(steps + 1):
        if step == 1:
            wall, cpu = time.perf_counter(), time.process_time()
        task.zero_grad()
        torch.stack(list(task(batch).values())).sum().backward()
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


if __name__ == "__main__":
    typer.run(main)
