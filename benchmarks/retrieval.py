"""Retrieval: time and memory of ranking 5,000 images and 25,000 texts, with the best 256 of each query scored by ITM.

`python benchmarks/retrieval.py [--images 5000] [--per-image 5] [--candidates 256]` makes a small model and random
images and texts, ranks them as an evaluation does, and as the reference's loop does, each in a process of its own. The
loop keeps the tokens of all images and two whole matrices of scores, pads every text to 35 tokens, and for each of a
query's candidates repeats image tokens before their keys and values are computed.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console
from rich.table import Table

from blip.batch import Batch, Example
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import normalise
from blip.metrics.retrieval import recalls
from blip.models.bert import TextConfig
from blip.models.med import MED, MEDConfig, SpecialTokens
from blip.models.vision import VisionConfig
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig

COLOURS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")
THINGS = ("dog", "boat", "girl", "street", "house", "tree", "lake", "bird", "cup", "chair")
BATCH = 64


def main(
    images: int = typer.Option(5000, help="Images."),
    per_image: int = typer.Option(5, help="Texts of each image."),
    candidates: int = typer.Option(256, help="Candidates of each query."),
    side: int = typer.Option(96, help="Pixels of an image's side, in patches of 8."),
) -> None:
    """Prints seconds, peak memory and R@1 of both ways."""
    title = f"{images:,} images, {images * per_image:,} texts, {candidates} candidates, {(side // 8) ** 2 + 1} tokens"
    table = Table("way", "seconds", "of CPU", "peak GiB", "beyond the process at rest", "tr1", "ir1", title=title)
    for name, way in (("the reference's loop", reference), ("blip", ours)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, cpu, peak, rest, scores = pool.apply(measured, (way, images, per_image, candidates, side))
        row = (f"{seconds:.0f}", f"{cpu:.0f}", f"{peak:.2f}", f"{peak - rest:.2f}")
        table.add_row(name, *row, f"{scores['tr1']:.3f}", f"{scores['ir1']:.3f}")
        print(name, row, scores, flush=True)  # noqa: T201
    Console(width=120).print(table)
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")  # noqa: T201


def measured(
    way: Callable[[Retrieval, list[Batch], int], dict[str, float]],
    images: int,
    per_image: int,
    candidates: int,
    side: int,
) -> tuple[float, float, float, float, dict[str, float]]:
    """Returns seconds, seconds of CPU, peak GiB, GiB before the work, and the scores."""
    task = make_task(candidates, side)
    batches = make_batches(task, images, per_image, side)
    rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        scores = way(task, batches, candidates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return time.perf_counter() - began, time.process_time() - cpu, peak, rest, scores


def make_task(candidates: int, side: int) -> Retrieval:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([f"a {colour} {thing} near the" for colour in COLOURS for thing in THINGS], 128)
    tokens = SpecialTokens(
        pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc
    )
    sizes = MEDConfig(
        vision=VisionConfig(size=side, patch=8, width=32, depth=1, heads=2, init_std=0.2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=32, depth=1, heads=2, feed_forward=128, positions=40, init_std=0.2
        ),
        embed=64,
        tokens=tokens,
    )
    cfg = RetrievalConfig(alignment=AlignmentConfig(queue=1), rerank=candidates, chunk=256)
    return Retrieval(cfg, MED(sizes, decoder=False), tokenizer).eval()


def make_batches(task: Retrieval, images: int, per_image: int, side: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for start in range(0, images, BATCH):
        numbers = range(start, min(start + BATCH, images))
        examples = [
            Example(
                str(number),
                torch.randint(0, 256, (3, side, side), generator=draw, dtype=torch.uint8),
                [make_text(draw) for _ in range(per_image)],
            )
            for number in numbers
        ]
        found.append(task.collate(examples))
    return found


def make_text(draw: torch.Generator) -> str:
    """A text of 3 to 15 words, as captions have."""
    count = int(torch.randint(1, 5, (), generator=draw))
    colours = torch.randint(len(COLOURS), (count,), generator=draw).tolist()
    things = torch.randint(len(THINGS), (count,), generator=draw).tolist()
    return " near ".join(
        f"the {COLOURS[colour]} {THINGS[thing]}" for colour, thing in zip(colours, things, strict=True)
    )


def ours(task: Retrieval, batches: list[Batch], candidates: int) -> dict[str, float]:  # noqa: ARG001
    first = [prediction for batch in batches for prediction in task.predict(batch)]
    second = task.rerank(first)
    found = []
    for batch in batches:
        found += second(batch, range(len(found), len(found) + len(batch)))
    return dict(task.score(found))


def reference(task: Retrieval, batches: list[Batch], candidates: int) -> dict[str, float]:
    model = task.model
    texts = [text for batch in batches for own in batch.extra["texts"] for text in own]
    owner = torch.tensor([i for i, own in enumerate(o for b in batches for o in b.extra["texts"]) for _ in own])
    tokens = task.encode_texts(texts)
    text_features = torch.cat(
        [
            model.text_feature(model.encode_text(tokens[slice(i, i + BATCH * 4)]))
            for i in range(0, len(texts), BATCH * 4)
        ]
    )
    image_tokens = torch.cat([model.encode_image(normalise(batch.images)) for batch in batches])
    similarity = model.image_feature(image_tokens) @ text_features.T

    def matched(image_rows: torch.Tensor, text_rows: torch.Tensor) -> torch.Tensor:
        cross = model.text_encoder.cross_keys_values(image_tokens[image_rows])
        return model.match(tokens[text_rows], cross)[:, 1]

    by_image = torch.full_like(similarity, -100.0)
    for image, row in enumerate(similarity):
        best, near = row.topk(min(candidates, len(row)))
        by_image[image, near] = matched(torch.full_like(near, image), near) + best
    by_text = torch.full_like(similarity.T.contiguous(), -100.0)
    for text, row in enumerate(similarity.T):
        best, near = row.topk(min(candidates, len(row)))
        by_text[text, near] = matched(near, torch.full_like(near, text)) + best
    return recalls(by_image, by_text, owner)


if __name__ == "__main__":
    typer.run(main)
