"""Ingest: a data set, read once, becomes shards that every later step streams, and a tokenizer."""

import difflib
import json
import re
import time
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self, assert_never

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from pydantic import Field, model_validator

from blip.config import Config, ConfigError, load_config
from blip.data.datasets import shapes
from blip.data.discover import Limits, discover
from blip.data.judge import JUDGE, SHAPES
from blip.data.manifest import Layout, Manifest
from blip.data.sample import format_counts
from blip.data.shards import samples, write_shards
from blip.data.sources import find_tars
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.logs import log
from blip.progress import progress
from blip.results import IngestResult, SplitResult
from blip.runs.context import RunContext
from blip.storage import Store, StoreError, open_store, probe

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
"""The files of a tokenizer."""
SPLITS = ("gold", "web", "test")
"""Clean human pairs, noisy web pairs, and what the models are judged by."""


class Shapes(Config):
    """The embedded world of shapes, whose truth is known."""

    type: Literal["shapes"] = "shapes"
    world: shapes.ShapesConfig = shapes.ShapesConfig()


class Tars(Layout, Limits):
    """WebDataset tars that are there already, local or in `s3://`; nothing is copied.

    Each split is a folder, a pattern (`web/{00000..00041}.tar`, `web/*.tar`) or a prefix of tars, a list of these, or a manifest (.json).
    """

    type: Literal["tars"] = "tars"
    gold: str | tuple[str, ...] = ""
    web: str | tuple[str, ...] = ""
    test: str | tuple[str, ...] = ""

    @property
    def layout(self) -> Layout:
        return Layout(**{name: getattr(self, name) for name in Layout.model_fields})

    def manifest(self, split: str, memory: Store, known: Collection[str] = ()) -> Manifest:
        """The tars of a split, those whose digests are `known` left out. Raises as `discover`."""
        return discover(getattr(self, split), split, memory=memory, known=known, layout=self.layout, limits=self)

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
    """A folder, a `vocab.txt`, or a name on Hugging Face's hub such as `bert-base-uncased`; none trains one on the texts."""
    vocab_size: int | None = Field(default=None, ge=16, le=10_000_000)
    """Entries of a trained vocabulary at most, special tokens counted; none is 256 for the world of shapes, which has few words, and else
    30524, as many as BERT's has with BLIP's own."""

    @property
    def vocabulary(self) -> int:
        return self.vocab_size or (256 if isinstance(self.data, Shapes) else 30524)


def ingest(context: RunContext, source: str, *, out: str | Path) -> IngestResult:
    """Writes the shards of `source` to the store, and their manifests and the tokenizer to the folder `out`.

    `source` is `shapes`, `tars` to take the configuration's word for where they lie, or where the web pairs lie: a folder, a pattern or a
    prefix of tars, or a manifest (`.json`). Tars that were read into the same store before, and are as they were, are not read again.
    """
    began = time.monotonic()
    cfg = load_config(IngestConfig, "ingest", context.preset, with_source(source, context.overrides))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    probe(open_store(context.store), conditional=False)
    words = Tokenizer.from_folder(fetch_tokenizer(cfg.tokenizer)) if cfg.tokenizer else None
    match cfg.data:
        case Shapes(world=world):
            manifests = make_shapes(world, context.store, cfg.per_shard, context.revision)
        case Tars() as tars:
            manifests = {split: tars.manifest(split, scan_cache(context.store)) for split in SPLITS}
        case _:
            assert_never(cfg.data)
    for split, manifest in manifests.items():
        manifest.save(folder / f"{split}.json")
    tokenizer = words or Tokenizer.train(cleaned_texts(manifests["gold"], manifests["web"]), cfg.vocabulary)
    tokenizer.save(folder / "tokenizer")
    unknown = unknown_share(tokenizer, manifests["gold"], manifests["web"])
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


def split_result(manifest: Manifest) -> SplitResult:
    """What an ingestion says of a split."""
    return SplitResult(
        samples=manifest.samples, shards=len(manifest.shards), counts=manifest.counts, digest=manifest.digest
    )


def with_source(source: str, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with what a source says.

    `shapes` and `tars` are types of data, but one that the overrides state has the last word; anything else takes the place of `data.web`.

    Raises ConfigError for a source that is not understood.
    """
    if source in ("shapes", "tars"):
        return [f"data.type={source}", *overrides]
    if not source.endswith(".json"):
        try:
            find_tars([source])
        except ConfigError as e:
            near = "; did you mean shapes?" if difflib.get_close_matches(source, ["shapes"]) else ""
            raise ConfigError(
                f"source {source!r} is not understood{near}: write shapes for the embedded world, or where web pairs lie ({e}), or tars, "
                "with data.gold, data.web and data.test set to where they lie"
            ) from None
    return ["data.type=tars", *overrides, f"data.web={json.dumps(source, ensure_ascii=False)}"]


def fetch_tokenizer(tokenizer: str) -> str:
    """Returns the path of a tokenizer: itself, or what the hub or its cache has under this name.

    Raises ConfigError where it is nowhere, StoreError where the hub does not answer, so that trying again can help.
    """
    if Path(tokenizer).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", tokenizer):
        return tokenizer
    try:
        return snapshot_download(tokenizer, allow_patterns=list(TOKENIZER_FILES))
    except (OSError, ValueError) as error:
        way_out = "name a folder or vocab.txt by tokenizer=PATH, or train one of your texts by tokenizer=null"
        if isinstance(error, HfHubHTTPError) and error.response.status_code >= 500:
            raise StoreError(f"tokenizer {tokenizer}: the hub does not answer; try again, or {way_out}") from None
        raise ConfigError(
            f"tokenizer {tokenizer}: no such file, and the hub does not give it ({type(error).__name__}); {way_out}"
        ) from None


def scan_cache(store: str) -> Store:
    """Returns where it is kept what tars hold, so that unchanged tars are not read again."""
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


CHECKED_TEXTS = 1000
"""Texts of a split in which words are counted that the tokenizer does not know."""

UNKNOWN_WARNING = 0.02
"""A share of unknown words that is worth a warning: BERT's vocabulary has 0.001 and less of English captions."""


def unknown_share(tokenizer: Tokenizer, *manifests: Manifest) -> float:
    """The share of tokens that are [UNK] in the first texts of some data sets; a large one is told, for models see nothing there."""
    first = [text for manifest in manifests for text in islice(cleaned_texts(manifest), CHECKED_TEXTS)]
    share = tokenizer.unknown(first)
    if share > UNKNOWN_WARNING:
        log.warning(
            "%.0f%% of the tokens of %d texts are [UNK] to the tokenizer: name one of their languages (tokenizer=...), or train one with "
            "more entries (no tokenizer, a larger vocab_size than %d)",
            100 * share,
            len(first),
            tokenizer.vocab_size,
        )
    return share


def cleaned_texts(*manifests: Manifest):
    """Every text of some data sets, cleaned as models will read it."""
    for manifest in manifests:
        for sample in samples(manifest):
            yield from map(clean_caption, sample.texts)
