"""Write-tars: writes a data set as self-contained WebDataset tars, for other tools."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from blip.config import ConfigError
from blip.logs import log
from blip.progress import progress
from blip.results import WriteTarsResult
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.shards.sample import Rejected, Sample, format_counts
from blip.storage import Store, open_store, probe, scratch

PATTERN = "{name}-{number:06d}.tar"


def write_tars(
    data: str | Path, source: str, out: str, per_shard: int = 10_000, *, each_text: bool = False
) -> WriteTarsResult:
    """Writes the samples of a manifest to WebDataset tars `SOURCE-000000.tar` in `out`, a folder or `s3://`.

    Each sample has its images, a `txt` with its first text, and a `json` with its metadata and all its `texts`. With
    `each_text` there is one sample, with a copy of the image, per text, for tools that read `txt` alone.
    Raises ConfigError; ShardError if a shard is missing or altered.
    """
    began = time.monotonic()
    path = Path(data, f"{source}.json")
    if not path.is_file():
        raise ConfigError(
            f"source {source!r}: {path} does not exist; name a manifest of the data folder, such as web or gold"
        )
    if per_shard < 1:
        raise ConfigError(f"per_shard is {per_shard}: a tar needs at least one sample")
    manifest = Manifest.load(path)
    manifest.check_not_empty(str(path))
    store = open_store(out)
    probe(store, conditional=False)
    if taken := [key for key in store.list(f"{source}-") if key.endswith(".tar")]:
        raise ConfigError(f"out {out!r} has tars already, {taken[0]} among them: name another folder, or delete them")
    rejected = Rejected()
    counts = Counter[str]()
    with progress(manifest.samples, "writing tars", "images") as bar:

        def members() -> Iterator[dict[str, Any]]:
            number = 0
            for shard in manifest.shards:
                for sample in read_shard(manifest.store, shard, rejected):
                    counts["images"] += 1
                    counts["texts"] += len(sample.texts)
                    for texts in [[text] for text in sample.texts] if each_text else [sample.texts]:
                        yield {"__key__": f"{number:09d}", **packed(sample, texts)}
                        number += 1
                    bar.advance(1)

        rest = members()
        for first in rest:
            tar = PATTERN.format(name=source, number=counts["tars"])
            counts["samples"] += write_tar(store, tar, chain([first], islice(rest, per_shard - 1)))
            counts["tars"] += 1
    if rejected:
        log.warning("left out %s", format_counts(rejected))
    pattern = f"{store.uri}/{source}-{{000000..{max(counts['tars'] - 1, 0):06d}}}.tar"
    seconds = time.monotonic() - began
    return WriteTarsResult(
        images=counts["images"],
        texts=counts["texts"],
        samples=counts["samples"],
        tars=counts["tars"],
        rejected=dict(rejected),
        pattern=pattern,
        seconds=seconds,
    )


def packed(sample: Sample, texts: list[str]) -> dict[str, bytes]:
    """Returns a sample's members by extension."""
    if len(sample.images) == 1:
        images = {sample.image_ext: sample.images[0]}
    else:
        images = {f"{i}.{sample.image_ext}": image for i, image in enumerate(sample.images)}
    known = {"key": sample.key, **sample.meta, "texts": texts}
    text = {"txt": texts[0].encode()} if texts else {}
    return {**images, **text, "json": json.dumps(known, sort_keys=True, ensure_ascii=False).encode()}


def write_tar(store: Store, name: str, samples: Iterable[dict[str, Any]]) -> int:
    """Writes samples to a tar in the store and returns their number; equal samples give equal bytes."""
    number = 0
    with scratch("tars") as folder:
        path = folder / name
        with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as tar:  # pyright: ignore[reportArgumentType]
            for sample in samples:
                tar.write(sample)
                number += 1
        store.put_file(name, path)
    return number
