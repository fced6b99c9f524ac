"""One shard through CapFilt: samples go in, the same samples with texts, scores and decisions come out."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field
from webdataset.writer import TarWriter

from blip.capfilt.hygiene import HygieneConfig
from blip.capfilt.pairs import CarriedConfig, Pair, make_pair, read_pairs
from blip.capfilt.rules import REASONS, SelectionConfig, decide
from blip.capfilt.stream import Chunk, StreamConfig, chunks, halve, matched, with_synthetic
from blip.capfilt.table import table_of, to_parquet
from blip.config import Config
from blip.data.index import Index
from blip.data.manifest import Shard
from blip.data.sample import Rejected
from blip.data.shards import ShardFile, check_unexpected
from blip.digest import file_digest
from blip.storage import Store
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.workers.worker import Output

JSON = "capfilt.json"
"""The member that CapFilt adds to a sample."""


class ShardConfig(Config):
    """Everything that decides about the bytes that come out."""

    variant: Literal["both", "captioner", "filter"] = "both"
    """Caption and filter; or only caption and keep all; or only filter the texts that are there (BLIP, Table 1)."""
    stream: StreamConfig = Field(default_factory=StreamConfig)
    hygiene: HygieneConfig = Field(default_factory=HygieneConfig)
    carried: CarriedConfig = Field(default_factory=CarriedConfig)
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    unexpected: float = Field(default=0.01, ge=0, le=1)
    """The share of a shard's samples over which the code may fail in ways that it does not know, before the shard counts as failed. Each
    is left out, and named in the log and the commit record. Three may fail in any case, but with 0 none."""

    @property
    def judged(self) -> bool:
        """Whether texts have a filter's scores."""
        return self.variant != "captioner"


class ShardBootstrap:
    """Captioner and filter (None where the variant has none), ready for one shard after another.

    Equal shards become equal bytes: captions depend on the sample's key, the seed and the models, and what came with a sample is copied.
    `models` are the digests that each sample shall name.
    """

    def __init__(
        self,
        cfg: ShardConfig,
        captioner: Captioning | None,
        text_filter: Retrieval | None,
        models: Mapping[str, str],
        source: Store,
        threads: int = 2,
    ):
        self.cfg, self.captioner, self.filter, self.source, self.threads = cfg, captioner, text_filter, source, threads
        if captioner is not None:
            captioner.check(cfg.stream.decoding)
        self.origin = {**models, "seed": cfg.stream.seed, "decoding": cfg.stream.decoding.model_dump()}
        tasks = [task for task in (captioner, text_filter) if task is not None]
        if cfg.stream.precision == "bfloat16":
            for task in tasks:
                halve(task.model)
        self.device = next(tasks[0].parameters()).device
        self.sizes = sorted({task.model.cfg.vision.size for task in tasks})

    def __call__(self, shard: Shard, path: Path, folder: Path, tally: Counter[str]) -> Output:
        """Makes tar, index and table of a shard's local file, in the folder.

        Raises ShardError where the tar cannot be read, and where more samples failed unexpectedly than `unexpected` allows.
        """
        rejected, spent, tables = Rejected(), Counter[str](), []
        tar, index, scores = (folder / name for name in ("out.tar", "out.idx.jsonl", "out.parquet"))
        with (
            ThreadPoolExecutor(self.threads) as pool,
            ShardFile(self.source, shard, path, rejected, verified=True) as source,
            tar.open("wb") as file,
            tar_writer(file) as out,
        ):
            for chunk in self.stream(source, pool, rejected, spent):
                table = table_of(chunk.pairs)
                reasons = [REASONS[i] for i in decide(table, self.cfg.selection, self.cfg.judged)]
                tables.append(table)
                tally.update(counted(chunk.pairs, reasons))
                for sample in self.samples(chunk.pairs, iter(reasons)):
                    out.write(sample)
            check_unexpected(rejected, source, self.cfg.unexpected, "capfilt.unexpected")
        entries = Index.scan(tar, Counter())
        index.write_bytes(entries.lines)
        scores.write_bytes(to_parquet(tables))
        tally.update({f"ns.{part}": time for part, time in spent.items()})
        record = {
            "samples": len(entries),
            "index": entries.digest,
            "scores": file_digest(scores),
            "rejected": dict(rejected),
            "unexpected": rejected.details,
        }
        return Output(tar, {".idx.jsonl": index, ".parquet": scores}, record)

    def stream(self, source: ShardFile, pool: Executor, rejected: Rejected, spent: Counter[str]) -> Iterator[Chunk]:
        """The shard's pairs, captioned and scored."""
        cfg = self.cfg
        prepare = partial(make_pair, sizes=self.sizes, hygiene=cfg.hygiene, carried=cfg.carried, drop=cfg.selection.drop)
        pairs = read_pairs(source, pool, prepare, 2 * cfg.stream.batch, rejected)
        stream = chunks(pairs, cfg.stream, self.device, spent)
        if self.captioner:
            stream = with_synthetic(stream, self.captioner)
        return matched(stream, self.filter) if self.filter else stream

    def samples(self, pairs: list[Pair], reasons: Iterator[str]) -> Iterator[dict[str, Any]]:
        """What the tar gets of each sample: its members byte for byte, and what was found out about it."""
        for pair in pairs:
            facts, texts = pair.facts, {"web": [], "synthetic": []}
            for text in pair.texts:
                scores = {"match": text.match, "similarity": text.similarity, "log_probability": text.log_probability}
                reason = next(reasons)
                texts[text.source].append({"text": text.text, **scores, "keep": not reason, "reason": reason, "faults": text.faults})
            image = {"sha256": facts.sha256, "phash": f"{facts.phash:016x}", "width": facts.width, "height": facts.height}
            found = {**texts, "image": {**image, "faults": facts.faults}, **pair.carried, **self.origin}
            yield {"__key__": pair.key, **pair.members, JSON: json.dumps(found, ensure_ascii=False, sort_keys=True).encode()}


def tar_writer(file: IO[bytes]) -> TarWriter:
    """Writes samples whose values are bytes, without the time or a user's name."""
    return TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT")  # pyright: ignore[reportArgumentType]


def counted(pairs: list[Pair], reasons: list[str]) -> Counter[str]:
    """Images and texts, and the texts kept so far, by source."""
    sources = [text.source for pair in pairs for text in pair.texts]
    kept = (f"{source}.kept" for source, reason in zip(sources, reasons, strict=True) if not reason)
    return Counter({"images": len(pairs)}) + Counter(sources) + Counter(kept)
