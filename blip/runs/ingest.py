"""Ingest: turns a data set into shards, manifests and a tokenizer for all later steps."""

import difflib
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self, assert_never, get_args

from pydantic import Field, model_validator

from blip.config import Config, ConfigError, load_config, validate
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.datasets import shapes
from blip.datasets.judge import JUDGE, SHAPES
from blip.datasets.official import (
    AOKVQA,
    COCO,
    MSRVTT,
    MSRVTTQA,
    MSVDQA,
    NLVR2,
    OKVQA,
    Flickr30k,
    NoCaps,
    Official,
    VisDial,
    VQAv2,
)
from blip.datasets.own import Files, forms_of, in_place
from blip.logs import log
from blip.models.weights.content import TOKENIZER
from blip.models.weights.source import fetched
from blip.progress import progress
from blip.results import IngestResult, SplitResult
from blip.runs.context import RunContext
from blip.runs.own_data import read_own, split_in_place
from blip.runs.shares import DEFAULT_SPLIT
from blip.shards.discover import Limits, discover
from blip.shards.manifest import Layout, Manifest
from blip.shards.reading import samples
from blip.shards.sample import format_counts
from blip.shards.sharing import write_sharing_shards
from blip.shards.writing import write_shards
from blip.storage import MissingKeyError, Store, locate, open_store, output_folder, probe

SPLITS = ("gold", "web", "test")
"""Clean human pairs, noisy web pairs, and pairs for evaluation."""
JUDGED = ("val", "dev", "test", "test-dev")
"""Splits whose texts make no vocabulary."""


class Shapes(Config):
    """The embedded world of shapes, whose truth is known."""

    type: Literal["shapes"] = "shapes"
    world: shapes.ShapesConfig = shapes.ShapesConfig()


class ShapesTask(Config):
    """The world of shapes as the data set of a downstream task: the splits train and test."""

    type: Literal["shapes_task"] = "shapes_task"
    task: shapes.ShapesTaskName = "vqa"
    """The task whose samples are made."""
    world: shapes.ShapesConfig = shapes.ShapesConfig()

    def manifest(self, split: Literal["train", "test"], store: str, per_shard: int, revision: str) -> Manifest:
        made = shapes.task_samples(self.task, split, self.world)
        root, name = f"{store}/{self.task}/{split}", f"{self.task}-{split}"
        return write_sharing_shards(made, root, name, per_shard, revision=revision, meta={JUDGE: SHAPES})


class Tars(Layout, Limits):
    """Existing WebDataset tars, local or in `s3://`; they are not copied.

    Each split is a folder, a pattern (`web/{00000..00041}.tar`, `web/*.tar`) or a prefix of tars, a list of these, or a
    manifest (`.json`). If `web` alone is given, shares of it become the splits, by indexes over the same tars.
    """

    type: Literal["tars"] = "tars"
    gold: str | tuple[str, ...] = ""
    web: str | tuple[str, ...] = ""
    test: str | tuple[str, ...] = ""
    split: str = ""
    """Shares of the splits where `web` alone is given, such as `0.9/0.1` or `gold=0.2/web=0.7/test=0.1`, as
    `parse_split` reads them; empty is 0.9/0.1. Images that look alike stay together."""

    @property
    def is_one_set(self) -> bool:
        return bool(self.web) and not self.gold and not self.test

    @property
    def layout(self) -> Layout:
        return Layout(**{name: getattr(self, name) for name in Layout.model_fields})

    def manifest(self, split: str, memory: Store, known: Collection[str] = ()) -> Manifest:
        """Returns the manifest of a split's tars, without those whose digests are in `known`. Raises as `discover`."""
        return discover(getattr(self, split), split, memory=memory, known=known, layout=self.layout, limits=self)

    @model_validator(mode="after")
    def locations_are_set(self) -> Self:
        if self.is_one_set:
            return self
        if self.split:
            raise ValueError(
                f"split is {self.split}, which divides one set, but gold or test is set, too: leave split out, or name "
                "web alone"
            )
        if missing := [split for split in SPLITS if not getattr(self, split)]:
            settings = ", ".join(f"data.{split}=..." for split in missing)
            raise ValueError(
                f"set {settings} to where the tars lie: a folder, a pattern as web/{{0000..0041}}.tar, a prefix, or a "
                f"manifest (in a pipeline ingest.data.{missing[0]}=...); or name web alone, which is then split"
            )
        return self


Data = Annotated[
    Shapes
    | ShapesTask
    | Tars
    | Files
    | COCO
    | Flickr30k
    | NoCaps
    | VQAv2
    | OKVQA
    | AOKVQA
    | NLVR2
    | VisDial
    | MSRVTT
    | MSRVTTQA
    | MSVDQA,
    Field(discriminator="type"),
]
KINDS = tuple(kind.model_fields["type"].default for kind in get_args(get_args(Data)[0]))
"""The values of `data.type`."""


class IngestConfig(Config):
    data: Data = Shapes()
    per_shard: int = Field(default=1000, ge=1)
    """Samples per shard."""
    tokenizer: Annotated[str | None, TOKENIZER] = None
    """A folder or `vocab.txt`, here or as a store's URI, or a name on the Hugging Face hub such as
    `google-bert/bert-base-uncased`, as `fetched` resolves them; none trains one on the texts."""
    vocab_size: int | None = Field(default=None, ge=16, le=10_000_000)
    """The maximum size of a trained vocabulary, with special tokens. None is 256 for the world of shapes, which has few
    words, and otherwise 30524, the size of BERT's with BLIP's special tokens."""

    @property
    def vocabulary(self) -> int:
        return self.vocab_size or (256 if isinstance(self.data, Shapes | ShapesTask) else 30524)


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


def with_source(source: str | Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Adds sources to the overrides.

    A kind of data sets `data.type`, which the overrides may change. Places set `data.web` if they hold tars of one
    store, a manifest, or if the overrides say that they are tars, and `data.path` for any other form. Without sources
    all is left to the settings.
    Raises ConfigError if a source is neither a kind nor a place of known data.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        return [*overrides]
    if len(sources) == 1 and sources[0] in KINDS:
        check_foreign_keys(sources[0], overrides)
        return [f"data.type={sources[0]}", *overrides]
    if is_web(sources, overrides):
        return ["data.type=tars", *overrides, f"data.web={listed(sources)}"]
    return ["data.type=files", *overrides, f"data.path={listed(sources)}"]


def listed(sources: Sequence[str]) -> str:
    """Returns sources as the value of an override."""
    return json.dumps(sources[0] if len(sources) == 1 else sources, ensure_ascii=False)


def given(overrides: Sequence[str], key: str) -> str:
    """Returns the value that the overrides give a key of `data`; empty if none."""
    values = [override.partition("=")[2] for override in overrides if override.startswith(f"data.{key}=")]
    return values[-1] if values else ""


def is_web(sources: Sequence[str], overrides: Sequence[str]) -> bool:
    """Returns whether sources are web pairs in tars that are read in place. Raises ConfigError if they are unknown."""
    if given(overrides, "type") == "files" or given(overrides, "form"):
        return False
    if all(map(is_manifest, sources)):
        return True
    try:
        found = forms_of(validate(Files, {"path": sources, **hints_of(overrides)}, "data"))
    except ConfigError as e:
        near = difflib.get_close_matches(sources[0], KINDS, n=1) if len(sources) == 1 else []
        name = f"source {sources[0]!r}" if len(sources) == 1 else f"sources {', '.join(sources)}"
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{name} is not understood{hint}: write shapes for the embedded world, or where data lie ({e}), or tars, "
            "with data.gold, data.web and data.test set to where they lie"
        ) from None
    if in_place(found):
        return True
    if other := next((split for split in ("gold", "test") if given(overrides, split)), ""):
        raise ConfigError(
            f"data.{other} goes with tars that are read in place, but {', '.join(sources)} holds "
            f"{'; '.join(form.words for form in found)}: name all sources together, and shares of them by data.split"
        )
    return False


def hints_of(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the settings among the overrides on which a guess depends."""
    return {name: given(overrides, name) for name in ("table", "image_field", "text_field") if given(overrides, name)}


def is_manifest(source: str) -> bool:
    """Returns whether a source is a manifest of shards, rather than a JSON file of annotations."""
    if not source.endswith(".json"):
        return False
    store, key = locate(source)
    try:
        content = json.loads(store.get(key))
    except MissingKeyError:
        return True  # reading it says that it is missing
    except ValueError:
        return False
    return isinstance(content, dict) and "shards" in content


def check_foreign_keys(kind: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError if settings of tars are given, but a source that has none of them."""
    if given(overrides, "type") or kind == "tars":
        return
    known = next(cls for cls in get_args(get_args(Data)[0]) if cls.model_fields["type"].default == kind)
    for split in SPLITS:
        if given(overrides, split) and split not in known.model_fields:
            raise ConfigError(
                f"data.{split} says where tars lie, but the source is {kind}: say source=tars (blip ingest tars), or "
                "data.type=tars"
            )


def tell(data: "Data") -> None:
    """Logs what was found, in plain words, and the settings under which it is read."""
    match data:
        case Files():
            rows = [(form.place.source, form.words, form.settings) for form in forms_of(data)]
            common = {"type": data.type, "split": data.split or f"the data's own, else {DEFAULT_SPLIT}"}
        case Tars() if data.is_one_set:
            rows = [(", ".join(place_list(data.web)), "tars, read where they lie", {})]
            common = {"type": data.type, "keys": data.keys, "split": data.split or DEFAULT_SPLIT}
        case _:
            return
    log.info("%s", "\n".join(found_table(rows, common)))


def place_list(places: str | tuple[str, ...]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else places


def found_table(rows: Sequence[tuple[str, str, Mapping[str, str]]], common: Mapping[str, str]) -> list[str]:
    """Returns the lines of a table of what was found and of the settings that were filled in."""
    lines = ["found"]
    for place, words, settings in rows:
        lines.append(f"  {place}: {words}")
        lines += [f"    data.{name}={value}" for name, value in settings.items()]
    return [*lines, *(f"  data.{name}={value}" for name, value in common.items())]


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
