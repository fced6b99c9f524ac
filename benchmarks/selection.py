"""Selection: time and memory of deciding about a whole web, and of the engines that could find what comes more than
once.

`python benchmarks/selection.py [--rows 1000000] [--alike 0.05] [--folder tables]` makes tables of scores as
CapFilt writes them, two texts an image, selects among them with and without near duplicates, and prints seconds and the
peak of memory, each in a process of its own. `--engines` compares DuckDB with Polars and numpy, where Polars is
installed, on exact duplicates alone.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from blip.capfilt.groups import Groups
from blip.capfilt.job import CapFiltConfig, CapFiltJob
from blip.capfilt.rules import SelectionConfig
from blip.capfilt.scores import Scores
from blip.capfilt.selected import write_selection
from blip.capfilt.table import SCORES_SCHEMA, to_parquet
from blip.digest import file_digest
from blip.shards.manifest import Manifest, Shard
from blip.storage import open_store

PER_SHARD = 10_000
"""Images of a table."""
WORDS = ("boat", "lake", "evening", "street", "red", "dog", "girl", "two", "old", "house", "snow", "tree")


def main(
    rows: int = typer.Option(1_000_000, help="Texts; an image has two."),
    alike: float = typer.Option(0.05, help="The share of images that all look alike."),
    flips: int = typer.Option(2, help="Bits by which those differ from one picture at most."),
    folder: Annotated[
        Path | None, typer.Option(help="Where tables are made and kept; none is a temporary one.")
    ] = None,
    engines: bool = typer.Option(False, help="Compare the engines that could group."),
) -> None:
    """Prints seconds and peak memory of selections."""
    columns = ("what", "rows", "seconds", "of CPU", "peak GiB", "kept images", "near duplicates")
    table = Table(*columns, title=f"{alike:.0%} of the images alike")
    with tempfile.TemporaryDirectory(prefix="blip-") as temporary:
        home = folder or Path(temporary)
        if not (home / "records.json").exists():
            make(home, rows, alike, flips)
        for name, drop in (("as by default", None), ("near duplicates dropped", "near_duplicate")):
            found = alone(selected, home, drop)
            near = f"{found.get('found.near_duplicate', 0):,}"
            table.add_row(name, f"{rows:,}", *cost(found), f"{found['images.kept']:,}", near)
        Console(width=120).print(table)
    if engines:
        compared = Table("engine", "images", "seconds", "of CPU", "peak GiB", "copies", title="exact duplicates")
        for engine in (duckdb_way, polars_way, numpy_way):
            found = alone(engine, rows // 2)
            compared.add_row(engine.__name__, f"{rows // 2:,}", *cost(found), f"{found['copies']:,}")
        Console(width=120).print(compared)


def alone(function: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What a function finds in a process of its own, its seconds, and the process's peak of memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (function, given))


def measured(function: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> dict[str, Any]:
    began = time.perf_counter()
    found = function(*given)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **found,
        "seconds": time.perf_counter() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / 2**20,
    }


def cost(found: dict[str, Any]) -> tuple[str, str, str]:
    """Seconds on the clock, seconds of CPU (the ones to go by on a busy machine), and gigabytes."""
    return f"{found['seconds']:.0f}", f"{found['cpu']:.0f}", f"{found['peak']:.2f}"


def selected(home: Path, drop: str | None) -> dict[str, Any]:
    """A selection among the tables of a folder, its indexes written."""
    records = json.loads((home / "records.json").read_text())
    shards = [Shard(name=name, sha256="0" * 64, bytes=1, samples=PER_SHARD) for name in records]
    job = CapFiltJob(
        config=CapFiltConfig(), input=Manifest(name="web", root=str(home), shards=tuple(shards)), models={}
    )
    cfg = SelectionConfig()
    cfg = cfg.model_copy(update={"drop": (*cfg.drop, drop)}) if drop else cfg
    return write_selection(Scores(job, open_store(home), records, {}), cfg, "").counts


def make(home: Path, rows: int, alike: float, flips: int) -> None:
    """Writes tables of random scores, hashes and texts."""
    rng = np.random.default_rng(0)
    records: dict[str, dict[str, Any]] = {}
    (home / "data").mkdir(parents=True, exist_ok=True)
    for number in range(0, rows // 2, PER_SHARD):
        name = f"web-{number // PER_SHARD:06d}.tar"
        path = home / "data" / name.replace(".tar", ".parquet")
        path.write_bytes(
            to_parquet([random_table(rng, name, number, min(PER_SHARD, rows // 2 - number), alike, flips)])
        )
        records[name] = {"name": f"data/{path.name}", "sha256": file_digest(path), "shard": name, "rejected": {}}
    (home / "records.json").write_text(json.dumps(records))


def random_table(rng: np.random.Generator, shard: str, number: int, images: int, alike: float, flips: int) -> pa.Table:
    hashes = rng.integers(0, 2**64, images, dtype=np.uint64)
    same = rng.random(images) < alike
    hashes[same] = looking_alike(rng, int(same.sum()), flips)
    digests = rng.bytes(32 * images).hex()
    sha256 = [digests[i : i + 64] for i in range(0, 64 * images, 64)]
    words = rng.choice(WORDS, (2 * images, 6)).tolist()
    begin = np.cumsum(rng.integers(20_000, 60_000, images)).tolist()
    members = [f'{{"jpg":[{at},{at % 40_000}],"json":[{at + 50_000},300]}}' for at in begin]
    twice = np.repeat(np.arange(images), 2)
    columns = {
        "shard": pa.array([shard] * (2 * images)),
        "key": pa.array([f"{number + i:09d}" for i in range(images)]).take(pa.array(twice)),
        "members": pa.array(members).take(pa.array(twice)),
        "source": pa.array(["web", "synthetic"] * images),
        "number": pa.array(np.zeros(2 * images, np.int16)),
        "text": pa.array([" ".join(some) for some in words]),
        "match": pa.array(rng.random(2 * images, np.float32)),
        "similarity": pa.array(rng.random(2 * images, np.float32)),
        "log_probability": pa.array(rng.random(2 * images, np.float32)),
        "faults": pa.array(np.where(rng.random(2 * images) < 0.02, "not_rgb", "")),
        "sha256": pa.array(sha256).take(pa.array(twice)),
        "phash": pa.array(hashes[twice]),
        "width": pa.array(np.full(2 * images, 256, np.int32)),
        "height": pa.array(np.full(2 * images, 256, np.int32)),
        **dict.fromkeys(("origin", "licence", "url"), pa.array([""] * (2 * images))),
    }
    return pa.table(columns, schema=SCORES_SCHEMA)


def looking_alike(rng: np.random.Generator, count: int, flips: int) -> np.ndarray:
    """Hashes that differ from one in a few bits at most."""
    found = np.full(count, 0x0123456789ABCDEF, dtype=np.uint64)
    for _ in range(flips):
        found ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    return found


def some_digests(images: int) -> list[str]:
    rng = np.random.default_rng(0)
    digests = rng.bytes(32 * images).hex()
    found = [digests[i : i + 64] for i in range(0, 64 * images, 64)]
    for later in rng.integers(images // 2, images, images // 20).tolist():
        found[later] = found[later // 2]
    return found


def duckdb_way(images: int) -> dict[str, Any]:
    sha256 = pa.array(some_digests(images))
    with Groups() as groups:
        for begin in range(0, images, PER_SHARD):
            part = sha256[begin : begin + PER_SHARD]
            numbers = np.arange(begin, begin + len(part))
            groups.add_images(numbers, part, numbers.astype(np.uint64), np.ones(len(part), dtype=bool))
        return {"copies": len(groups.later_copies())}


def polars_way(images: int) -> dict[str, Any]:
    import polars  # pyright: ignore[reportMissingImports]

    frame = polars.DataFrame({"image": np.arange(images), "digest": some_digests(images)}).lazy()
    first = polars.col("image") != polars.col("image").min().over("digest")
    return {"copies": frame.filter(first).select("image").collect(engine="streaming").height}


def numpy_way(images: int) -> dict[str, Any]:
    codes = pa.array(some_digests(images)).dictionary_encode().indices.to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return {"copies": int((first[inverse] != np.arange(images)).sum())}


if __name__ == "__main__":
    sys.exit(typer.run(main))
