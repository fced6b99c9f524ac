"""Retrieval: time and memory of ranking 5,000 images and 25,000 texts, with the best 256 of each query scored by ITM.

`python benchmarks/retrieval.py [--images 5000] [--per-image 5] [--candidates 256]` makes a small model and random
images and texts, ranks them as an evaluation does, and as the reference's loop does, each in a process of its own. The
loop keeps the tokens of all images and two whole matrices of scores, pads every text to 35 tokens, and for each of a
query's candidates repeats image tokens before their keys and values are computed. With `--part 0.05` both match the
candidates of one in 20 images or queries alone, drawn at random, and the seconds of that part count 20 times; memory is
as of the whole, and scores say nothing then.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import typer
from rich.console import Console
from rich.table import Table

from blip.batch import Batch, Example, Tokens
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
    part: float = typer.Option(1.0, min=1e-3, max=1.0, help="Share of images and queries that are re-ranked."),
) -> None:
    """Prints seconds, peak memory and R@1 of both ways."""
    title = f"{images:,} images, {images * per_image:,} texts, {candidates} candidates, {(side // 8) ** 2 + 1} tokens"
    table = Table("way", "seconds", "of CPU", "peak GiB", "beyond the process at rest", "tr1", "ir1", title=title)
    for name, way in (("blip", ours), ("the reference's loop", reference)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, cpu, peak, rest, scores = pool.apply(measured, (way, images, per_image, candidates, side, part))
        row = (f"{seconds:.0f}", f"{cpu:.0f}", f"{peak:.2f}", f"{peak - rest:.2f}")
        table.add_row(name, *row, *(f"{scores[score]:.3f}" if part == 1 else "" for score in ("tr1", "ir1")))
        print(name, row, scores, flush=True)  # noqa: T201
    Console(width=120).print(table)
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")  # noqa: T201


@dataclass
class Clock:
    """Seconds, and seconds of CPU, of work of which a part is done and counts in full."""

    part: float
    seconds: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def counting(self, times: float = 1.0) -> Iterator[None]:
        """Counts the work of the context so many times."""
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += times * (time.perf_counter() - began)
        self.cpu += times * (time.process_time() - cpu)


def measured(
    way: Callable[[Retrieval, list[Batch], int, Clock], dict[str, float]],
    images: int,
    per_image: int,
    candidates: int,
    side: int,
    part: float,
) -> tuple[float, float, float, float, dict[str, float]]:
    """Returns seconds, seconds of CPU, peak GiB, GiB before the work, and the scores."""
    task = make_task(candidates, side)
    batches = make_batches(task, images, per_image, side)
    rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    clock = Clock(part)
    with torch.no_grad():
        scores = way(task, batches, candidates, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return clock.seconds, clock.cpu, peak, rest, scores


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


def ours(task: Retrieval, batches: list[Batch], candidates: int, clock: Clock) -> dict[str, float]:  # noqa: ARG001
    draw, match = torch.Generator().manual_seed(1), task.match_one

    def match_some(image: torch.Tensor, texts: Tokens, lengths: torch.Tensor) -> torch.Tensor:
        if torch.rand((), generator=draw) >= clock.part:
            return torch.zeros(len(lengths))
        with clock.counting(1 / clock.part - 1):  # once it is counted with all else
            return match(image, texts, lengths)

    task.match_one = match_some
    with clock.counting():
        first = [prediction for batch in batches for prediction in task.predict(batch)]
        second = task.rerank(first)
        found = []
        for batch in batches:
            found += second(batch, range(len(found), len(found) + len(batch)))
        return dict(task.score(found))


def reference(task: Retrieval, batches: list[Batch], candidates: int, clock: Clock) -> dict[str, float]:
    model = task.model
    draw = torch.Generator().manual_seed(1)

    def matched(image_rows: torch.Tensor, text_rows: torch.Tensor) -> torch.Tensor:
        cross = model.text_encoder.cross_keys_values(image_tokens[image_rows])
        return model.match(tokens[text_rows], cross)[:, 1]

    def queries(count: int) -> list[int]:
        return torch.randperm(count, generator=draw)[: max(1, round(count * clock.part))].tolist()

    with clock.counting():
        texts = [text for batch in batches for own in batch.extra["texts"] for text in own]
        owner = torch.tensor([i for i, own in enumerate(o for b in batches for o in b.extra["texts"]) for _ in own])
        tokens = task.encode_texts(texts)
        parts = [tokens[slice(i, i + BATCH * 4)] for i in range(0, len(texts), BATCH * 4)]
        text_features = torch.cat([model.text_feature(model.encode_text(part)) for part in parts])
        image_tokens = torch.cat([model.encode_image(normalise(batch.images)) for batch in batches])
        similarity = model.image_feature(image_tokens) @ text_features.T
        by_image = torch.full_like(similarity, -100.0)
        by_text = torch.full_like(similarity.T.contiguous(), -100.0)
    with clock.counting(1 / clock.part):
        for image in queries(len(by_image)):
            best, near = similarity[image].topk(min(candidates, len(texts)))
            by_image[image, near] = matched(torch.full_like(near, image), near) + best
        for text in queries(len(by_text)):
            best, near = similarity[:, text].topk(min(candidates, len(by_image)))
            by_text[text, near] = matched(near, torch.full_like(near, text)) + best
    with clock.counting():
        return recalls(by_image, by_text, owner)


if __name__ == "__main__":
    typer.run(main)
