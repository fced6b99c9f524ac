"""Measures images per second of CapFilt, against transformers with the same weights.

For each image both sample a caption by nucleus sampling and match two texts; both read the same JPEGs. Ours processes
a shard, and also computes ITC's similarity; transformers runs `generate`, and the ITM model once for each text. Weights
are random, so no caption ends early and all have the same length. Times are CPU time of one thread, or wall-clock time
on a GPU.
`python benchmarks/capfilt.py [--preset base] [--images 8] [--batch 8] [--rounds 1]`
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessor
from transformers.utils.logging import disable_progress_bar

from blip.capfilt.shard import ShardCapFilt, ShardConfig
from blip.capfilt.stream import StreamConfig
from blip.capfilt.table import FILTER
from blip.config import load_config
from blip.data.tokenizer import BERT_TOKENS, Tokenizer
from blip.data.transforms import MEAN, STD
from blip.distributed import device
from blip.logs import quiet
from blip.models.generation import Nucleus
from blip.models.weights.export import write_huggingface
from blip.runs.config import RunConfig
from blip.shards.manifest import Manifest
from blip.shards.reading import local_copy
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.zoo.image_model import Precision
from blip.zoo.ours import OurCaptioner, OurFilter

WEB_TEXT = "a small wooden boat on the shore of a lake in the evening"
DECODING = Nucleus()
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PARTS = ("input", "encode", "decode", "filter")


def main(
    preset: str = typer.Option("base", help="Preset of captioner and filter: base, large or shapes."),
    images: int = typer.Option(8, help="Images per round."),
    batch: int = typer.Option(8, help="Images per batch."),
    rounds: int = typer.Option(1, help="Rounds of each variant; the fastest is reported."),
) -> None:
    """Prints images per second of each variant, and the parts of our time."""
    quiet()
    disable_progress_bar()
    torch.set_num_threads(1)
    tokenizer = large_tokenizer()
    samples = [Sample(f"{i:04d}", [photograph(i)], [WEB_TEXT], image_ext="jpg") for i in range(images)]
    captioner, text_filter = build(preset, tokenizer)
    size = captioner.model.cfg.vision.size
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "one CPU thread"
    title = f"{preset} at {size} pixels, batch {batch}, {where}"
    table = Table("variant", "precision", "images/s", *PARTS, title=title)
    with tempfile.TemporaryDirectory(prefix="blip-") as folder:
        export(captioner, text_filter, Path(folder))
        manifest = write_shards(samples, Path(folder, "web"), "web", images)
        for precision in PRECISIONS:
            variant = transformers(captioner, text_filter, samples, batch, precision, Path(folder))
            table.add_row("transformers", precision, f"{images / fastest(variant, rounds):.3g}")
        for precision in PRECISIONS:  # bfloat16 comes last: it converts the models
            tally: Counter[str] = Counter()
            variant = ours(captioner, text_filter, manifest, batch, precision, tally)
            seconds = fastest(variant, rounds)
            whole = sum(tally[f"ns.{part}"] for part in PARTS)
            shares = [f"{tally[f'ns.{part}'] / whole:.0%}" for part in PARTS]
            table.add_row("blip.capfilt", precision, f"{images / seconds:.3g}", *shares)
    Console(width=120).print(table)


def build(preset: str, tokenizer: Tokenizer) -> tuple[Captioning, Retrieval]:
    """Returns captioner and filter of a preset with random weights."""
    torch.manual_seed(0)
    configs = [load_config(RunConfig, stage, preset).with_tokenizer(tokenizer) for stage in ("captioner", "filter")]
    models = [cfg.task.model_from(cfg.model) for cfg in configs]
    cfg = configs[1].task.model_copy(update={"alignment": AlignmentConfig(queue=1)})
    text_filter = Retrieval(cfg, models[1], tokenizer)  # pyright: ignore[reportArgumentType]
    del text_filter.alignment
    captioner = Captioning(configs[0].task, models[0], tokenizer)  # pyright: ignore[reportArgumentType]
    return captioner.eval().to(device()), text_filter.eval().to(device())


def large_tokenizer() -> Tokenizer:
    """Returns a tokenizer with a vocabulary of BERT's size."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*BERT_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    with tempfile.TemporaryDirectory(prefix="blip-") as folder:
        path = Path(folder, "vocab.txt")
        path.write_text("\n".join([*pieces, *(f"##{i}" for i in range(30522 - len(pieces)))]))
        return Tokenizer.from_folder(path)


def photograph(seed: int) -> bytes:
    """Returns a JPEG of 640 x 480 pixels that takes about as long to decode as a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(
    captioner: Captioning,
    text_filter: Retrieval,
    manifest: Manifest,
    batch: int,
    precision: Precision,
    tally: Counter[str],
) -> Callable[[], object]:
    """CapFilt over a shard, which is copied from its store."""
    stream = StreamConfig.model_validate({"batch": batch, "decoding": DECODING, "precision": precision})
    writer, judge = OurCaptioner(captioner, DECODING, 42, precision), OurFilter(text_filter, precision)
    bootstrap = ShardCapFilt(ShardConfig(stream=stream), writer, {FILTER: judge}, manifest.store, threads=1)
    shard = manifest.shards[0]

    def run() -> None:
        with tempfile.TemporaryDirectory(prefix="blip-") as out, local_copy(manifest.store, shard.name) as path:
            bootstrap(shard, path, Path(out), tally)

    return run


def export(captioner: Captioning, text_filter: Retrieval, folder: Path) -> None:
    write_huggingface(captioner.model, BlipForConditionalGeneration, folder / "captioner")
    write_huggingface(text_filter.model, BlipForImageTextRetrieval, folder / "filter")


def transformers(
    captioner: Captioning, text_filter: Retrieval, samples: list[Sample], batch: int, precision: str, folder: Path
) -> Callable[[], object]:
    """The same work by transformers' models and image processor."""
    dtype = getattr(torch, precision)
    writer = BlipForConditionalGeneration.from_pretrained(folder / "captioner", dtype=dtype).eval().to(device())  # pyright: ignore[reportArgumentType]
    judge = BlipForImageTextRetrieval.from_pretrained(folder / "filter", dtype=dtype).eval().to(device())  # pyright: ignore[reportArgumentType]
    size = captioner.model.cfg.vision.size
    processor = BlipImageProcessor(size={"height": size, "width": size}, image_mean=list(MEAN), image_std=list(STD))
    sampling = DECODING.model_dump(exclude={"type"})

    def match(pixels: torch.Tensor, texts: list[str]) -> list[float]:
        tokens = text_filter.encode_texts(texts).to(pixels.device)
        scores = judge(input_ids=tokens.ids, attention_mask=tokens.mask.long(), pixel_values=pixels).itm_score
        return scores.float().softmax(1)[:, 1].tolist()

    @torch.inference_mode()
    def run() -> None:
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            images = [Image.open(BytesIO(sample.images[0])).convert("RGB") for sample in part]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(device(), dtype)
            prompt = captioner.prompt(len(part)).to(pixels.device)
            inputs = {"pixel_values": pixels, "input_ids": prompt}
            ids = writer.generate(**inputs, do_sample=True, num_beams=1, **sampling)
            match(pixels, [sample.texts[0] for sample in part])
            match(pixels, captioner.tokenizer.decode(ids[:, prompt.shape[1] :]))

    return run


def fastest(variant: Callable[[], object], rounds: int) -> float:
    """Returns the seconds of the fastest round, after one that warms up."""
    variant()
    return min(timed(variant) for _ in range(rounds))


def timed(variant: Callable[[], object]) -> float:
    """Returns CPU seconds, or wall-clock seconds on a GPU."""
    if not torch.cuda.is_available():
        began = time.process_time()
        variant()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    variant()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
