"""Figures and pictures of a selection, with precision and recall if the data set's truth is known."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from blip.capfilt.rules import REASONS, SelectionConfig, is_web, score_columns
from blip.config import validate
from blip.data.images import MOST_PIXELS, decode
from blip.datasets.judge import Judge
from blip.report.bootstrap_page import BINS, THUMBNAIL, ReportPicture, ScoredText
from blip.results import SOURCES, Change, Kept, KeptBySource, MatchHistogram, Noise, SelectResult, Source
from blip.shards.layout import parse_json
from blip.shards.manifest import Manifest, Shard
from blip.shards.names import image_extensions
from blip.shards.reading import open_shard
from blip.shards.sample import Rejected
from blip.storage import Store, write_file

PICTURES_PER_KIND = 6
"""Pictures kept from either end of each kind."""

Truths = NDArray[np.float64]
"""Per row: 1 if the text is true of the image, 0 if it is false, NaN if unknown."""


@dataclass
class Corner:
    """An image whose first text of a source has one of the highest or lowest scores of its kind."""

    match: float
    row: int
    """The row of that text in the whole data set."""
    shard: Shard
    key: str
    members: str
    texts: list[tuple[Source, ScoredText]]


@dataclass
class SelectionFigures:
    """Collects counts and extreme images shard by shard, as the visitor of `capfilt.selected.write_selection`."""

    store: Store
    """The store of the shards."""
    judge: Judge | None
    """Evaluates texts against the ground truth of their samples, after the selection."""
    rows: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    bins: dict[Source, NDArray[np.int64]] = field(
        default_factory=lambda: {source: np.zeros((3, BINS), dtype=np.int64) for source in SOURCES}
    )
    """Histograms `(3, BINS)` of the rule's score by source: true, false and unknown texts; similarities below 0 count
    as 0."""
    corners: dict[tuple[Source, int], list[Corner]] = field(default_factory=dict)
    """By source and kind (kept, dropped, kept and false, dropped and true), ranked by score."""

    def __call__(self, shard: Shard, table: pa.Table, reasons: NDArray[np.int8]) -> None:
        """Adds a shard."""
        truth = truths(self.store, shard, table, self.judge)
        kept = reasons == 0
        match = table["score"].to_numpy()
        for source, rows in by_source(table):
            self.count(source, kept[rows], truth[rows], match[rows])
            first = rows & (table["number"].to_numpy() == 0) & ~np.isnan(match)
            for kind, of_kind in enumerate((kept, ~kept, kept & (truth == 0), ~kept & (truth == 1))):
                found = self.corners.setdefault((source, kind), [])
                found += self.cornered(shard, table, reasons, truth, extremes(match, np.flatnonzero(first & of_kind)))
                found.sort(key=lambda corner: (-corner.match, corner.row))
                found[PICTURES_PER_KIND:-PICTURES_PER_KIND] = []
        self.rows += len(table)

    def count(self, source: Source, kept: NDArray[np.bool_], truth: Truths, match: NDArray[np.float32]) -> None:
        """Counts the texts of a source."""
        known, true = ~np.isnan(truth), truth == 1
        self.counts[source, "all"] += len(kept)
        self.counts[source, "kept"] += int(kept.sum())
        self.counts[source, "known"] += int(known.sum())
        self.counts[source, "true"] += int(true.sum())
        self.counts[source, "kept", "known"] += int((kept & known).sum())
        self.counts[source, "kept", "true"] += int((kept & true).sum())
        scored = ~np.isnan(match)
        places = np.clip((match[scored].astype(np.float64) * BINS).astype(np.int64), 0, BINS - 1)
        kinds = np.select([true[scored], known[scored]], [0, 1], 2)
        self.bins[source] += np.bincount(kinds * BINS + places, minlength=3 * BINS).reshape(3, BINS)

    def cornered(
        self, shard: Shard, table: pa.Table, reasons: NDArray[np.int8], truth: Truths, rows: NDArray[np.int64]
    ) -> Iterator[Corner]:
        """Yields the images of `rows` with all their texts."""
        if not len(rows):
            return
        keys = table["key"].combine_chunks()
        for row in rows.tolist():
            of_image = np.flatnonzero(pc.call_function("equal", [keys, keys[row]]).to_numpy(zero_copy_only=False))
            texts = [scored_text(table, reasons, truth, other) for other in of_image.tolist()]
            key, members, match = (table[name][row].as_py() for name in ("key", "members", "score"))
            yield Corner(match, self.rows + row, shard, key, members, texts)

    def result(self, manifest: Manifest, dead: Mapping[str, str], mlflow: str, seconds: float) -> SelectResult:
        """Returns the shares of true texts, kept texts with precision and recall, and histograms of scores."""
        noise: dict[str, Change[float | None]] = {}
        kept: dict[str, Kept] = {}
        histograms = []
        for source in SOURCES:
            total, chosen, true = (self.counts[source, name] for name in ("all", "kept", "true"))
            precision = ratio(self.counts[source, "kept", "true"], self.counts[source, "kept", "known"])
            recall = ratio(self.counts[source, "kept", "true"], true)
            noise[source] = Change(before=ratio(true, self.counts[source, "known"]), after=precision)
            kept[source] = Kept(precision=precision, recall=recall, kept=ratio(chosen, total) or 0.0)
            bars = dict(zip(("true", "false", "unknown"), map(tuple, self.bins[source].tolist()), strict=True))
            histograms.append(MatchHistogram(source=source, **bars))
        rule = manifest.meta["selection"]["rule"]
        one = rule["type"] == "matched" and rule["web"] == rule["synthetic"]
        return SelectResult(
            noise=Noise(**noise),
            capfilt=KeptBySource(**kept),
            histograms=tuple(histograms),
            counts=manifest.counts,
            threshold=rule["web"] if one else None,
            score=score_columns(validate(SelectionConfig, manifest.meta["selection"], "selection").rule)[0],
            dead=dict(dead),
            digest=manifest.digest,
            mlflow=mlflow,
            seconds=seconds,
        )

    def pictures(self) -> list[ReportPicture]:
        """Returns the extreme images of every kind with their texts."""
        chosen: dict[str, dict[str, Corner]] = {}
        for corners in self.corners.values():
            for corner in corners:
                chosen.setdefault(corner.shard.name, {}).setdefault(corner.key, corner)
        found = []
        for of_shard in chosen.values():
            for corner in sorted(of_shard.values(), key=lambda corner: corner.row):
                texts = {source: tuple(text for of, text in corner.texts if of == source) for source in SOURCES}
                found.append(ReportPicture(key=corner.key, image=thumbnail(self.image(corner)), **texts))
        return found

    def image(self, corner: Corner) -> bytes:
        members = json.loads(corner.members)
        return self.store.read(corner.shard.name, *members[image_extensions(members)[0]])


def truths(store: Store, shard: Shard, table: pa.Table, judge: Judge | None) -> Truths:
    """Evaluates the texts of a shard. Without a judge all are unknown, and the shard is not read."""
    if judge is None:
        return np.full(len(table), np.nan)
    meta: dict[str, Mapping[str, Any]] = {}
    with open_shard(store, shard, Rejected()) as file:
        for key, text in zip(table["key"].to_pylist(), table["members"].to_pylist(), strict=True):
            if key not in meta:
                place = json.loads(text).get("json", (0, 0))
                meta[key], _ = parse_json(file.read(*place))
    found = (
        judge(meta[key], text) for key, text in zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)
    )
    return np.array([np.nan if true is None else float(true) for true in found], dtype=np.float64)


def extremes(match: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows with the highest and the lowest scores."""
    ranked = rows[np.argsort(-match[rows], kind="stable")]
    return (
        ranked
        if len(ranked) <= 2 * PICTURES_PER_KIND
        else np.concatenate([ranked[:PICTURES_PER_KIND], ranked[-PICTURES_PER_KIND:]])
    )


def by_source(table: pa.Table) -> Iterator[tuple[Source, NDArray[np.bool_]]]:
    web = is_web(table)
    yield "web", web
    yield "synthetic", ~web


def ratio(part: int, whole: int) -> float | None:
    """Returns `part / whole`, or None if `whole` is 0."""
    return part / whole if whole else None


def scored_text(table: pa.Table, reasons: NDArray[np.int8], truth: Truths, row: int) -> tuple[Source, ScoredText]:
    """Returns a row's source and its text as the page shows it."""
    source, text, match = (table[name][row].as_py() for name in ("source", "text", "score"))
    true = None if np.isnan(truth[row]) else bool(truth[row])
    return source, ScoredText(text=text, match=match, kept=not reasons[row], reason=REASONS[reasons[row]], true=true)


def thumbnail(data: bytes) -> bytes:
    """Returns an encoded image at thumbnail size, unchanged if it is small. Raises BadSample."""
    image = decode(data, MOST_PIXELS)  # CapFilt and evaluation enforced their own limits
    if max(image.size) <= THUMBNAIL:
        return data
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def save_pictures(found: Sequence[ReportPicture], path: Path) -> None:
    values = [{**p.model_dump(), "image": base64.b64encode(p.image).decode()} for p in found]
    write_file(path, json.dumps(values, indent=1))


def load_pictures(path: Path) -> list[ReportPicture]:
    return [
        ReportPicture(**{**values, "image": base64.b64decode(values["image"])})
        for values in json.loads(path.read_text(encoding="utf-8"))
    ]
