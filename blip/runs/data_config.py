"""What is ingested: the worlds that are made, official files, tars, and own data of any form."""

from collections.abc import Collection
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from blip.config import Config
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
    VisDial,
    VQAv2,
)
from blip.datasets.own import Files
from blip.models.weights.content import TOKENIZER
from blip.shards.discover import Limits, discover
from blip.shards.manifest import ANONYMOUS, Layout, Manifest
from blip.shards.sharing import write_sharing_shards
from blip.storage import Store

SPLITS = ("gold", "web", "test")
"""Clean human pairs, noisy web pairs, and pairs for evaluation."""


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

    anonymous: bool = False
    """Whether buckets are read without keys, as public ones can be; the manifests say so to later steps."""

    @property
    def is_one_set(self) -> bool:
        return bool(self.web) and not self.gold and not self.test

    @property
    def layout(self) -> Layout:
        return Layout(**{name: getattr(self, name) for name in Layout.model_fields})

    def manifest(self, split: str, memory: Store, known: Collection[str] = ()) -> Manifest:
        """Returns the manifest of a split's tars, without those whose digests are in `known`. Raises as `discover`."""
        found = discover(getattr(self, split), split, memory=memory, known=known, layout=self.layout, limits=self)
        if not self.anonymous:
            return found
        return found.model_copy(update={"meta": {**found.meta, ANONYMOUS: True}})

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
