"""What CapFilt did, in figures and pictures; and how right it was, where a data set tells the truth."""

import base64
import json
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blip.capfilt.result import Result, read_index
from blip.capfilt.rules import REASONS, is_web
from blip.capfilt.table import joined
from blip.data.datasets.shapes import is_true
from blip.data.images import MOST_PIXELS, decode
from blip.data.layout import read_json
from blip.data.names import image_names
from blip.data.shards import local_copy
from blip.report.bootstrap_page import THUMBNAIL, Judged, Picture, Source, scores

SOURCES: tuple[Source, ...] = ("web", "synthetic")
MOST = 6
"""Pictures of each kind that are kept for the report."""

Truths = NDArray[np.float64]
"""Of each row 1 where its text is true of its image, 0 where it is not, NaN where nobody knows."""


def truths(result: Result) -> Truths:
    """Judges all texts by what their samples say they show: for evaluation, after everything is decided."""
    known: list[NDArray[np.float64]] = []
    for record, table in zip(result.records, result.tables, strict=True):
        index, truth = read_index(result.store, record), {}
        with local_copy(result.store, record["name"]) as path, path.open("rb") as file:
            for row in range(len(index)):
                key, members, *_ = index[row]
                offset, size = members.get("json", (0, 0))
                meta, _ = read_json(os.pread(file.fileno(), size, offset))
                truth[key] = meta.get("truth")
                if not isinstance(truth[key], dict):  # a data set tells the truth of all or of none
                    return np.full(sum(map(len, result.tables)), np.nan)
        texts = zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)
        known.append(np.array([is_true(truth[key], text) for key, text in texts], dtype=np.float64))
    return np.concatenate([np.empty(0), *known])


def figures(result: Result, truth: Truths) -> dict[str, Any]:
    """Shares of true texts (`noise`), of what was kept and how rightly (`capfilt`), and histograms of the filter's scores."""
    table, kept = joined(result.tables), np.concatenate(result.reasons) == 0
    found: dict[str, Any] = {"noise": {}, "capfilt": {}, "scores": {}, "counts": result.manifest.counts}
    for source, rows in by_source(table):
        precision = mean(truth[rows & kept])
        found["noise"][source] = {"before": mean(truth[rows]), "after": precision}
        found["capfilt"][source] = {"precision": precision, "recall": mean(kept[rows & (truth == 1)]), "kept": mean(kept[rows]) or 0.0}
        judged = zip(table["match"].filter(pa.array(rows)).to_pylist(), map(known, truth[rows]), strict=True)
        found["scores"][source] = scores(source, judged).model_dump()
    rule = result.manifest.meta["selection"]["rule"]
    return {**found, "threshold": rule["web"] if rule["type"] == "matched" and rule["web"] == rule["synthetic"] else None}


def by_source(table: pa.Table) -> Iterator[tuple[Source, NDArray[np.bool_]]]:
    web = is_web(table)
    yield "web", web
    yield "synthetic", ~web


def mean(values: NDArray[Any]) -> float | None:
    """None of nothing, and of what is not known."""
    found = float(np.mean(values)) if len(values) else np.nan
    return None if np.isnan(found) else found


def known(truth: float) -> bool | None:
    return None if np.isnan(truth) else bool(truth)


def pictures(result: Result, truth: Truths) -> list[Picture]:
    """Images with their texts, from every corner: surely and hardly kept, surely and hardly dropped, wrongly kept and wrongly dropped."""
    table, reasons = joined(result.tables), np.concatenate(result.reasons)
    starts = np.cumsum([0, *map(len, result.tables)])
    chosen: dict[int, dict[str, list[int]]] = {}
    for row in corners(table, reasons == 0, truth):
        part = int(np.searchsorted(starts, row, "right")) - 1
        chosen.setdefault(part, {})[table["key"][row].as_py()] = []
    for part, keys in chosen.items():
        for i, key in enumerate(result.tables[part]["key"].to_pylist()):
            if key in keys:
                keys[key].append(int(starts[part]) + i)
    found = []
    for part, keys in chosen.items():
        record, index = result.records[part], read_index(result.store, result.records[part])
        for key, members, *_ in map(index.__getitem__, range(len(index))):
            if key in keys:
                image = result.store.read(record["name"], *members[image_names(members)[0]])
                judged = [judge(table, reasons, truth, row) for row in keys[key]]
                texts = {source: tuple(text for of, text in judged if of == source) for source in SOURCES}
                found.append(Picture(key=key, image=thumbnail(image), **texts))
    return found


def corners(table: pa.Table, kept: NDArray[np.bool_], truth: Truths) -> list[int]:
    """Rows of first texts with the highest and lowest scores of each kind, by source."""
    match = table["match"].to_numpy()
    chosen: list[int] = []
    for _, rows in by_source(table):
        rows = rows & (table["number"].to_numpy() == 0) & ~np.isnan(match)
        for kind in (kept, ~kept, kept & (truth == 0), ~kept & (truth == 1)):
            ranked = np.flatnonzero(rows & kind)[np.argsort(-match[rows & kind], kind="stable")]
            chosen += [*ranked[:MOST].tolist(), *ranked[-MOST:].tolist()]
    return chosen


def judge(table: pa.Table, reasons: NDArray[np.int8], truth: Truths, row: int) -> tuple[Source, Judged]:
    """A row as the page shows it, and its source."""
    source, text, match = (table[name][row].as_py() for name in ("source", "text", "match"))
    return source, Judged(text=text, match=match, kept=not reasons[row], reason=REASONS[reasons[row]], true=known(truth[row]))


def thumbnail(data: bytes) -> bytes:
    """An image's bytes, as they are if it is small. Raises BadSample."""
    image = decode(data, MOST_PIXELS)  # CapFilt and evaluation have set their own limits
    if max(image.size) <= THUMBNAIL:
        return data
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def save_pictures(found: Sequence[Picture], path: Path) -> None:
    path.write_text(json.dumps([{**p.model_dump(), "image": base64.b64encode(p.image).decode()} for p in found], indent=1))


def load_pictures(path: Path) -> list[Picture]:
    return [Picture(**{**values, "image": base64.b64decode(values["image"])}) for values in json.loads(path.read_text())]
