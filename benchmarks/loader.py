"""Measures images per second and core of the loader, against plain webdataset and against samples in memory.

All variants read the same images in one process, and decode, augment and collate them in the same way. They alternate,
so that other load on the machine affects all of them. `python benchmarks/loader.py`
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table

from blip.batch import Batch, Example
from blip.data.images import decode
from blip.data.loader import Loader, LoaderConfig
from blip.data.reader import sample_rng
from blip.data.transforms import TransformConfig, train_transform
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.shards.sample import Sample
from blip.shards.writing import write_shards

BATCH = 64


@dataclass
class Case:
    name: str
    extension: str
    width: int
    height: int
    transform: TransformConfig | None
    samples: int
    batches: int


CASES = [
    Case("32 px PNG, read alone", "png", 32, 32, None, 2048, 32),
    Case("32 px PNG, crop and flip", "png", 32, 32, TransformConfig(size=32, min_scale=0.5, augment="none"), 2048, 8),
    Case("640x480 JPEG, RandomAugment to 224 px", "jpg", 640, 480, TransformConfig(size=224, min_scale=0.5), 512, 2),
]


def main(rounds: int = typer.Option(5, help="Rounds of each variant; the median is reported.")) -> None:
    """Prints images per second and core of each variant, and the loader's ratio to the other two."""
    torch.set_num_threads(1)
    table = Table("images", "loader", "webdataset", "memory", "loader / webdataset", "loader / memory")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_shards(pictures(case), folder, "pictures", case.samples // 8)
            own, plain, memory = measure(variants(manifest, case), case.batches, rounds)
        rates = [f"{rate:,.0f}" for rate in (own, plain, memory)]
        table.add_row(case.name, *rates, f"{own / plain:.2f}", f"{own / memory:.2f}")
    Console(width=130).print(table)


def variants(manifest: Manifest, case: Case) -> list[Iterator[list | Batch]]:
    """Returns endless batches of the loader, of webdataset, and from memory."""

    def prepare(sample: Sample, rng: np.random.Generator) -> Any:
        if case.transform is None:
            return sample
        return Example(sample.key, train_transform(case.transform, rng)(decode(sample.images[0])), sample.texts)

    collate: Callable[[list], Any] = list if case.transform is None else Batch.of
    in_memory = [sample for shard in manifest.shards for sample in read_shard(manifest.store, shard)]
    tars = [str(Path(manifest.root) / shard.name) for shard in manifest.shards]
    plain = webdataset.WebDataset(tars, shardshuffle=len(tars)).repeat().shuffle(1000)

    def from_webdataset() -> Iterator[Any]:
        for row in plain:
            key = row["__key__"]
            sample = Sample(key, [row[case.extension]], [row["txt"].decode()])
            yield prepare(sample, sample_rng(0, 0, key))

    def from_memory() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            for i in rng.permutation(len(in_memory)).tolist():
                yield prepare(in_memory[i], sample_rng(0, 0, in_memory[i].key))

    loader = Loader([manifest], prepare, collate, LoaderConfig(batch=BATCH))
    return [iter(loader), batched(from_webdataset(), collate), batched(from_memory(), collate)]


def batched(examples: Iterator[Any], collate: Callable[[list], Any]) -> Iterator[Any]:
    while chunk := list(islice(examples, BATCH)):
        yield collate(chunk)


def measure(sources: list[Iterator[list | Batch]], batches: int, rounds: int) -> list[float]:
    """Returns each source's median rate in images per second of CPU time, after a batch that warms up."""
    for source in sources:
        next(source)
    return np.median([[rate(source, batches) for source in sources] for _ in range(rounds)], axis=0).tolist()


def rate(source: Iterator[list | Batch], batches: int) -> float:
    start = time.process_time()
    images = sum(len(batch) for batch in islice(source, batches))
    return images / (time.process_time() - start)


def pictures(case: Case) -> Iterator[Sample]:
    """Yields images of coarse random colours, which take about as long to decode as photographs of their size."""
    rng = np.random.default_rng(0)
    for i in range(case.samples):
        coarse = Image.fromarray(rng.integers(0, 256, (case.height // 8, case.width // 8, 3), dtype=np.uint8))
        encoded = io.BytesIO()
        picture = coarse.resize((case.width, case.height), Image.Resampling.BICUBIC)
        picture.save(encoded, "JPEG" if case.extension == "jpg" else case.extension)
        yield Sample(f"{i:06d}", [encoded.getvalue()], ["a picture of colours"], {"number": i}, case.extension)


if __name__ == "__main__":
    typer.run(main)
