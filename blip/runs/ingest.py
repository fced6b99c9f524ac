"""Ingest: a data set, read once, becomes shards that every later step streams, and a tokenizer."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import Field, model_validator

from blip.config import Config, ConfigError, load
from blip.data.datasets import shapes
from blip.data.discover import discover
from blip.data.manifest import Manifest
from blip.data.shards import samples, write_shards
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.logs import log, progress
from blip.storage import Store, open_store, probe

SPLITS = ("gold", "web", "test")
"""Clean human pairs, noisy web pairs, and what the models are judged by."""


class Shapes(Config):
    """The embedded world of shapes, whose truth is known."""

    type: Literal["shapes"] = "shapes"
    world: shapes.ShapesConfig = shapes.ShapesConfig()


class Tars(Config):
    """WebDataset tars that are there already: a folder, a pattern with braces, or a prefix, local or `s3://`; nothing is copied."""

    type: Literal["tars"] = "tars"
    gold: str = ""
    web: str = ""
    test: str = ""

    @model_validator(mode="after")
    def all_are_said(self) -> Self:
        if missing := [split for split in SPLITS if not getattr(self, split)]:
            settings = ", ".join(f"data.{split}=..." for split in missing)
            raise ValueError(
                f"set {settings} to where the tars lie: a folder, a pattern as web/{{0000..0041}}.tar, a prefix, or a manifest "
                f"(in a pipeline ingest.data.{missing[0]}=...)"
            )
        return self


class IngestConfig(Config):
    data: Annotated[Shapes | Tars, Field(discriminator="type")] = Shapes()
    per_shard: int = Field(default=1000, ge=1)
    """Samples of a shard."""
    tokenizer: str | None = None
    """A folder or `vocab.txt`, such as that of `bert-base-uncased`; none trains one on the texts."""
    vocab_size: int = Field(default=30524, ge=16)
    """Entries of a trained vocabulary at most, special tokens counted."""


def ingest(source: str, preset: str, overrides: Sequence[str], store: str, revision: str, out: str) -> dict[str, Any]:
    """Writes the shards of `source` to the store and their manifests and the tokenizer to the folder `out`; returns counts by split.

    `source` is `shapes`, a manifest (`.json`) of the web pairs, or anything else to take the configuration's word for where tars lie. Tars
    that were read into the same store before, and are as they were, are not read again for their digests.
    """
    began = time.monotonic()
    cfg = load(IngestConfig, "ingest", preset, with_source(source, overrides))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    probe(open_store(store), conditional=False)
    match cfg.data:
        case Shapes(world=world):
            manifests = make_shapes(world, store, cfg.per_shard, revision)
        case Tars() as tars:
            manifests = {split: discover(getattr(tars, split), split, memory=memory(store)) for split in SPLITS}
        case _:
            assert_never(cfg.data)
    for split, manifest in manifests.items():
        manifest.save(folder / f"{split}.json")
    if cfg.tokenizer:
        tokenizer = Tokenizer.from_folder(cfg.tokenizer)
    else:
        tokenizer = Tokenizer.train(texts(manifests["gold"], manifests["web"]), cfg.vocab_size)
    tokenizer.save(folder / "tokenizer")
    figures = {split: {"samples": m.samples, "shards": len(m.shards), "counts": m.counts} for split, m in manifests.items()}
    log.info("ingested %s", json.dumps(figures))
    return {**figures, "vocabulary": tokenizer.vocab_size, "seconds": time.monotonic() - began}


def with_source(source: str, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with what a source says: a type that they state has the last word, a manifest takes the place of `data.web`.

    Raises ConfigError for a source that is not understood.
    """
    if source in ("shapes", "tars"):
        return [f"data.type={source}", *overrides]
    if source.endswith(".json"):
        return ["data.type=tars", *overrides, f"data.web={source}"]
    raise ConfigError(
        f"source {source!r} is not understood: write shapes for the embedded world, a manifest (.json) of web pairs, or tars, "
        "with data.gold, data.web and data.test set to where they lie"
    )


def memory(store: str) -> Store:
    """Where it is remembered what tars hold, so that nobody reads them again for it."""
    return open_store(store).join("read")


def make_shapes(world: shapes.ShapesConfig, store: str, per_shard: int, revision: str) -> dict[str, Manifest]:
    makers = {"gold": (shapes.gold, world.gold), "web": (shapes.web, world.web), "test": (shapes.test, world.test)}
    manifests = {}
    with progress(sum(count for _, count in makers.values()), "rendering") as bar:
        for split, (make, _) in makers.items():
            counted = (sample for sample in make(world) if not bar.advance())
            manifests[split] = write_shards(counted, f"{store}/{split}", split, per_shard, revision=revision)
    return manifests


def texts(*manifests: Manifest):
    """Every text of some data sets, cleaned as models will read it."""
    for manifest in manifests:
        for sample in samples(manifest):
            yield from map(clean_caption, sample.texts)
