"""Runs CapFilt over one shard and writes its table of texts and scores."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from blip.capfilt.pairs import CarriedConfig, Pair, make_pair, read_pairs
from blip.capfilt.quality import ImageFault, QualityConfig
from blip.capfilt.stream import Chunk, StreamConfig, chunks, with_scores, with_synthetic
from blip.capfilt.table import column, decoy_column, schema_of, table_of, to_parquet
from blip.config import Config
from blip.shards.manifest import Shard
from blip.shards.reading import ShardFile, check_unexpected
from blip.shards.sample import Rejected
from blip.storage import Store
from blip.workers.worker import Output
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.contract import Captioner, Filter


class ShardConfig(Config):
    """The settings that determine captions and scores."""

    variant: Literal["both", "captioner", "filter"] = "both"
    """Caption and filter, only caption, or only filter the web texts (BLIP, Table 1)."""
    stream: StreamConfig = Field(default_factory=StreamConfig)
    quality: QualityConfig = Field(default_factory=QualityConfig)
    captioner: VisionLanguageConfig = Field(default_factory=VisionLanguageConfig)
    """A captioner of transformers."""
    filter: DualEncoderConfig = Field(default_factory=DualEncoderConfig)
    """Filters of transformers and open_clip."""
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
    """Captions and scores one shard after another; without a captioner or without filters if the variant has none.

    Deterministic: captions depend only on sample key, seed and models, so equal shards give equal bytes. If
    a model's results also depend on their batch, the commit record says so.
    """

    def __init__(
        self,
        cfg: ShardConfig,
        captioner: Captioner | None,
        filters: Mapping[str, Filter],
        source: Store,
        revision: str = "",
        threads: int = 2,
    ):
        """`source` is the store of the shards; the code's `revision` is recorded in each commit."""
        self.cfg, self.captioner, self.filters = cfg, captioner, filters
        self.source, self.revision, self.threads = source, revision, threads
        self.models: dict[str, Captioner | Filter] = {**({"captioner": captioner} if captioner else {}), **filters}
        self.views = [model.view for model in self.models.values()]
        columns = [column(name, score) for name, judge in filters.items() for score in judge.gives]
        self.schema = schema_of([*columns, *(map(decoy_column, columns) if cfg.stream.decoys else ())])

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
                tables.append(table_of(chunk.pairs, shard.name, self.schema))
                tally.update(tally_of(chunk.pairs))
                images += len(chunk.pairs)
            check_unexpected(rejected, source, self.cfg.unexpected, "capfilt.unexpected")
        scores = folder / "scores.parquet"
        scores.write_bytes(to_parquet(tables, self.schema))
        tally.update({f"ns.{part}": time for part, time in spent.items()})
        record = {
            "samples": images,
            "rejected": dict(rejected),
            "unexpected": rejected.details,
            "determinism": {name: model.determinism for name, model in self.models.items()},
            "revision": self.revision,
        }
        return Output(scores, record)

    def stream(self, source: ShardFile, pool: Executor, rejected: Rejected, spent: Counter[str]) -> Iterator[Chunk]:
        """Yields the shard's pairs, captioned and scored."""
        cfg = self.cfg
        prepare = partial(make_pair, views=self.views, quality=cfg.quality, carried=cfg.carried, skip=cfg.skip)
        pairs = read_pairs(source, pool, prepare, 2 * cfg.stream.batch, rejected)
        stream = chunks(pairs, cfg.stream, spent)
        if self.captioner:
            stream = with_synthetic(stream, self.captioner)
        return with_scores(stream, self.filters) if self.filters else stream


def tally_of(pairs: list[Pair]) -> Counter[str]:
    """Counts images, texts by source, scored texts by source and the sum of their p(match)."""
    found: Counter[str] = Counter(images=len(pairs))
    for pair in pairs:
        for text in pair.texts:
            found[text.source] += 1
            if "match" in text.scores:
                found[f"{text.source}.scored"] += 1
                found[f"{text.source}.match"] += text.scores["match"]  # pyright: ignore[reportArgumentType]  # a sum, not a count
    return found
