"""One shard through CapFilt: samples go in, a table of their texts and scores comes out."""

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
from blip.data.manifest import Shard
from blip.data.sample import Rejected
from blip.data.shards import ShardFile, check_unexpected
from blip.storage import Store
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.workers.worker import Output


class ShardConfig(Config):
    """Everything that decides about the scores."""

    variant: Literal["both", "captioner", "filter"] = "both"
    """Caption and filter; or only caption and keep all; or only filter the texts that are there (BLIP, Table 1)."""
    stream: StreamConfig = Field(default_factory=StreamConfig)
    quality: QualityConfig = Field(default_factory=QualityConfig)
    carried: CarriedConfig = Field(default_factory=CarriedConfig)
    skip: tuple[ImageFault, ...] = ("several", "small", "elongated", "animated", "opted_out")
    """Faults of an image that no model looks at, so that it gets no caption and no score. A selection finds its texts unscored."""
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """The share of a shard's samples over which the code may fail in ways that it does not know, before the shard counts as failed. Each
    is left out, and named in the log and the commit record. Three may fail in any case, but with 0 none."""

    @property
    def scored(self) -> bool:
        """Whether texts have a filter's scores."""
        return self.variant != "captioner"


class ShardCapFilt:
    """Captioner and filter (None where the variant has none), ready for one shard after another.

    Equal shards give equal bytes: captions depend on the sample's key, the seed and the models.
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
        """`source` is the store of the shards; `revision` of the code is recorded in each commit."""
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

        Raises ShardError where the tar cannot be read, and where more samples failed unexpectedly than `unexpected` allows.
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
        """The shard's pairs, captioned and scored."""
        cfg = self.cfg
        prepare = partial(make_pair, sizes=self.sizes, quality=cfg.quality, carried=cfg.carried, skip=cfg.skip)
        pairs = read_pairs(source, pool, prepare, 2 * cfg.stream.batch, rejected)
        stream = chunks(pairs, cfg.stream, self.device, spent)
        if self.captioner:
            stream = with_synthetic(stream, self.captioner)
        return with_scores(stream, self.filter) if self.filter else stream


def tally_of(pairs: list[Pair]) -> Counter[str]:
    """Images and texts so far, and by source the texts that the filter has scored and the sum of their p(match)."""
    found: Counter[str] = Counter(images=len(pairs))
    for pair in pairs:
        for text in pair.texts:
            found[text.source] += 1
            if text.match is not None:
                found[f"{text.source}.scored"] += 1
                found[f"{text.source}.match"] += text.match  # pyright: ignore[reportArgumentType]  # a sum, not a count
    return found
