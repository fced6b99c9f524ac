"""Runs CapFilt over one shard and writes its table of texts and scores."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from blip.capfilt.pairs import CarriedConfig, Pair, make_pair, read_pairs
from blip.capfilt.quality import ImageFault, QualityConfig
from blip.capfilt.stream import Chunk, StreamConfig, chunks, to_bfloat16, with_scores, with_synthetic
from blip.capfilt.table import table_of, to_parquet
from blip.config import Config
from blip.shards.manifest import Shard
from blip.shards.reading import ShardFile, check_unexpected
from blip.shards.sample import Rejected
from blip.storage import Store
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.workers.worker import Output


class ShardConfig(Config):
    """The settings that determine captions and scores."""

    variant: Literal["both", "captioner", "filter"] = "both"
    """Caption and filter, only caption, or only filter the web texts (BLIP, Table 1)."""
    stream: StreamConfig = Field(default_factory=StreamConfig)
    quality: QualityConfig = Field(default_factory=QualityConfig)
    carried: CarriedConfig = Field(default_factory=CarriedConfig)
    skip: tuple[ImageFault, ...] = ("several", "small", "elongated", "animated", "opted_out")
    """Images with these faults are not captioned or scored; a selection drops their texts as `unscored`."""
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """A shard fails if more than this share of its samples raises unexpected errors, 0 to 1; each such sample is left
    out and named in the log and the commit. Up to three are always tolerated, unless this is 0."""

    @property
    def scored(self) -> bool:
        """Whether a filter scores the texts."""
        return self.variant != "captioner"


class ShardCapFilt:
    """Captions and scores one shard after another; captioner or filter is None if the variant has none.

    Deterministic: captions depend only on sample key, seed and models, so equal shards give equal bytes.
    """

    def __init__(
        self,
        cfg: ShardConfig,
        captioner: Captioning | None,
        text_filter: Retrieval | None,
        source: Store,
        revision: str = "",
        threads: int = 2,
    ):
        """`source` is the store of the shards; the code's `revision` is recorded in each commit."""
        self.cfg, self.captioner, self.filter = cfg, captioner, text_filter
        self.source, self.revision, self.threads = source, revision, threads
        if captioner is not None:
            captioner.check(cfg.stream.decoding)
        tasks = [task for task in (captioner, text_filter) if task is not None]
        if cfg.stream.precision == "bfloat16":
            for task in tasks:
                to_bfloat16(task.model)
        self.device = next(tasks[0].parameters()).device
        self.sizes = sorted({task.model.cfg.vision.size for task in tasks})

    def __call__(self, shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        """Writes the table of a shard's local file to the folder.

        Raises ShardError if the tar cannot be read, or if more samples failed than `unexpected` allows.
        """
        rejected, spent = Rejected(), Counter[str]()
        tables = []
        images = 0
        with (
            ThreadPoolExecutor(self.threads) as pool,
            ShardFile(self.source, shard, path, rejected, verified=True) as source,
        ):
            for chunk in self.stream(source, pool, rejected, spent):
                tables.append(table_of(chunk.pairs, shard.name))
                tally.update(tally_of(chunk.pairs))
                images += len(chunk.pairs)
            check_unexpected(rejected, source, self.cfg.unexpected, "capfilt.unexpected")
        scores = folder / "scores.parquet"
        scores.write_bytes(to_parquet(tables))
        tally.update({f"ns.{part}": time for part, time in spent.items()})
        record = {
            "samples": images,
            "rejected": dict(rejected),
            "unexpected": rejected.details,
            "revision": self.revision,
        }
        return Output(scores, record)

    def stream(self, source: ShardFile, pool: Executor, rejected: Rejected, spent: Counter[str]) -> Iterator[Chunk]:
        """Yields the shard's pairs, captioned and scored."""
        cfg = self.cfg
        prepare = partial(make_pair, sizes=self.sizes, quality=cfg.quality, carried=cfg.carried, skip=cfg.skip)
        pairs = read_pairs(source, pool, prepare, 2 * cfg.stream.batch, rejected)
        stream = chunks(pairs, cfg.stream, self.device, spent)
        if self.captioner:
            stream = with_synthetic(stream, self.captioner)
        return with_scores(stream, self.filter) if self.filter else stream


def tally_of(pairs: list[Pair]) -> Counter[str]:
    """Counts images, texts by source, scored texts by source and the sum of their p(match)."""
    found: Counter[str] = Counter(images=len(pairs))
    for pair in pairs:
        for text in pair.texts:
            found[text.source] += 1
            if text.match is not None:
                found[f"{text.source}.scored"] += 1
                found[f"{text.source}.match"] += text.match  # pyright: ignore[reportArgumentType]  # a sum, not a count
    return found
