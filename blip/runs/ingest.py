"""Ingest: turns a data set into shards, manifests and a tokenizer for all later steps."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import assert_never

from blip.config import ConfigError, load_config
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.datasets import shapes
from blip.datasets.judge import JUDGE, SHAPES
from blip.datasets.official import Official
from blip.datasets.own import Files
from blip.logs import log
from blip.models.weights.content import TOKENIZER
from blip.models.weights.source import fetched
from blip.progress import progress
from blip.results import IngestResult, SplitResult
from blip.runs.context import RunContext
from blip.runs.data_config import SPLITS, IngestConfig, Shapes, ShapesTask, Tars
from blip.runs.found import tell, with_source
from blip.runs.own_data import read_own, split_in_place
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import format_counts
from blip.shards.sharing import write_sharing_shards
from blip.shards.writing import write_shards
from blip.storage import Store, open_store, output_folder, probe

JUDGED = ("val", "dev", "test", "test-dev")
"""Splits whose texts make no vocabulary."""


def ingest(context: RunContext, source: str | Sequence[str], *, out: str | Path) -> IngestResult:
    """Writes the shards of `source` to the store, and their manifests and the tokenizer to the folder `out`.

    `source` is a kind of data, such as `shapes`, `tars` for the locations in the configuration, or `coco` for the
    official files there; or one or several places of own data, whose form is guessed and said. Tars of one store are
    read in place, once if they are unchanged; what else there is is copied into shards.
    Raises ConfigError; StoreError if the store or the hub is unavailable.
    """
    began = time.monotonic()
    cfg = load_config(IngestConfig, "ingest", context.preset, with_source(source, context.overrides))
    tell(cfg.data)
    if isinstance(cfg.data, Files):
        check_apart(cfg.data.places, {"--out": str(out), "--store": context.store})
    probe(open_store(context.store), conditional=False)
    words = read_tokenizer(cfg.tokenizer) if cfg.tokenizer else None
    match cfg.data:
        case Shapes(world=world):
            manifests = make_shapes(world, context.store, cfg.per_shard, context.revision)
        case Tars() as tars if tars.is_one_set:
            whole = tars.manifest("web", scan_cache(context.store))
            check_not_empty({"web": whole})
            manifests = split_in_place(whole, tars.split, tars, context.store)
        case Tars() as tars:
            manifests = {split: tars.manifest(split, scan_cache(context.store)) for split in SPLITS}
            check_not_empty(manifests)
        case ShapesTask() as made:
            manifests = {
                split: made.manifest(split, context.store, cfg.per_shard, context.revision)
                for split in ("train", "test")
            }
        case Files() as files:
            manifests = read_own(files, context.store, cfg.per_shard, context.revision)
        case Official() as official:
            manifests = read_official(official, context.store, cfg.per_shard, context.revision)
        case _:
            assert_never(cfg.data)
    trained_on = [manifest for split, manifest in manifests.items() if split not in JUDGED] or list(manifests.values())
    tokenizer = words or Tokenizer.train(cleaned_texts(*trained_on), cfg.vocabulary)
    with output_folder(out) as folder:
        for split, manifest in manifests.items():
            manifest.save(folder / f"{split}.json")
        tokenizer.save(folder / "tokenizer")
    unknown = unknown_share(tokenizer, *trained_on)
    splits = {split: split_result(manifest) for split, manifest in manifests.items()}
    log.info("ingested %s", ", ".join(f"{split}: {found.samples:,} samples" for split, found in splits.items()))
    for split, manifest in manifests.items():
        if manifest.counts:
            log.warning(
                "%s: %s samples; not used, or without a text: %s",
                split,
                f"{manifest.samples:,}",
                format_counts(manifest.counts),
            )
    seconds = time.monotonic() - began
    return IngestResult(splits=splits, vocabulary=tokenizer.vocab_size, unknown=unknown, seconds=seconds)


def check_apart(places: Sequence[str], written: Mapping[str, str]) -> None:
    """Raises ConfigError if what is written lies in a folder of the data, of which it would then be a part."""
    folders = [place for place in places if os.path.isdir(place)]
    for option, folder in written.items():
        for place in folders if "://" not in folder else ():
            if Path(folder).resolve().is_relative_to(Path(place).resolve()):
                raise ConfigError(
                    f"{option} {folder}: lies in {place}, whose files are read, so that the next call would read what "
                    "this one writes; name a folder outside of it"
                )


def check_not_empty(manifests: Mapping[str, Manifest]) -> None:
    """Raises ConfigError if a split of tars holds no sample."""
    for split, manifest in manifests.items():
        if not manifest.samples:
            raise ConfigError(
                f"data.{split}: no sample is in the {len(manifest.shards)} tars of {manifest.root} "
                f"(left out: {format_counts(manifest.counts)}): name tars of images with their texts"
            )


def split_result(manifest: Manifest) -> SplitResult:
    """Returns the result of a split."""
    return SplitResult(
        samples=manifest.samples, shards=len(manifest.shards), counts=manifest.counts, digest=manifest.digest
    )


def read_tokenizer(source: str) -> Tokenizer:
    """Returns the tokenizer of a path, a store's URI or a hub name. Raises ConfigError and StoreError."""
    with fetched(source, TOKENIZER) as path:
        return Tokenizer.from_folder(path)


def scan_cache(store: str) -> Store:
    """Returns the store of tar scans, which spares reading unchanged tars again."""
    return open_store(store).join("read")


def make_shapes(world: shapes.ShapesConfig, store: str, per_shard: int, revision: str) -> dict[str, Manifest]:
    makers = {
        "gold": (shapes.gold_samples, world.gold),
        "web": (shapes.web_samples, world.web),
        "test": (shapes.test_samples, world.test),
    }
    manifests = {}
    with progress(sum(count for _, count in makers.values()), "rendering") as bar:
        for split, (make, _) in makers.items():
            counted = (sample for sample in make(world) if not bar.advance())
            manifests[split] = write_shards(
                counted, f"{store}/{split}", split, per_shard, revision=revision, meta={JUDGE: SHAPES}
            )
    return manifests


def read_official(data: Official, store: str, per_shard: int, revision: str) -> dict[str, Manifest]:
    """Writes the shards of a public data set's splits; images that samples share are stored once."""
    manifests = {}
    for split in data.read_splits:
        counts = Counter[str]()
        name = f"{getattr(data, 'type', 'official')}-{split}"
        read = data.read(split, counts)
        with progress(0, f"reading {split}") as bar:
            counted = (sample for sample in read if not bar.advance())
            manifests[split] = write_sharing_shards(
                counted, f"{store}/{name}", name, per_shard, revision=revision, counts=counts
            )
    return manifests


CHECKED_TEXTS = 1000
"""Texts per split in which unknown words are counted."""

UNKNOWN_WARNING = 0.02
"""A larger share of unknown tokens raises a warning; on English captions BERT's vocabulary has at most 0.001."""


def unknown_share(tokenizer: Tokenizer, *manifests: Manifest) -> float:
    """Returns the share of [UNK] tokens in the first texts of each manifest, 0 to 1; logs a warning if it is large."""
    first = [text for manifest in manifests for text in islice(cleaned_texts(manifest), CHECKED_TEXTS)]
    share = tokenizer.unknown(first)
    if share > UNKNOWN_WARNING:
        log.warning(
            "%.0f%% of the tokens of %d texts are [UNK] to the tokenizer: name one of their languages (tokenizer=...), "
            "or train one with more entries (no tokenizer, a larger vocab_size than %d)",
            100 * share,
            len(first),
            tokenizer.vocab_size,
        )
    return share


def cleaned_texts(*manifests: Manifest):
    """Yields every text of the manifests, cleaned as in training."""
    for manifest in manifests:
        for sample in samples(manifest):
            yield from map(clean_caption, sample.texts)
