"""Selects texts of a whole data set: a pure function of the stored scores, so another threshold needs no model."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from blip.capfilt.duplicates import near_duplicates
from blip.capfilt.groups import Groups
from blip.capfilt.quality import ImageFault
from blip.capfilt.rules import ALL_FAULTS, REASONS, Fault, SelectionConfig, drop_reasons, images, is_web, mark

SELECTION_COLUMNS = ["source", "number", "text", "faults", "sha256", "phash", "width", "origin"]
"""The columns of the table of scores that a selection reads, besides the scores of its rule."""


@dataclass
class Selection:
    """For each text the position in REASONS `(rows,)`, 0 if kept; and counts."""

    reasons: NDArray[np.int8]
    counts: dict[str, int]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.reasons == 0


def select_texts(tables: Iterable[pa.Table], cfg: SelectionConfig, scored: bool) -> Selection:
    """Selects among the texts of tables, which come in the order of the shards; `scored` if a filter has scored them.

    Of duplicate images one stays: the first with a text to keep, or else the first. Reads each table once and keeps a
    few bytes per row in memory.
    """
    rows = RowFacts()
    with Groups() as groups:
        for table in tables:
            reasons = drop_reasons(table, cfg, scored)
            image = images(table)
            add_images(groups, table, image, reasons == 0, rows.images)
            add_texts(groups, table, rows.total)
            rows.add(table, image, reasons)
        image = rows.image
        copies = mask_of(groups.later_copies(), rows.images)
        repeated = mask_of(groups.repeated(cfg.repeats), rows.total)
        hashes = groups.hashes() if cfg.drops("near_duplicate") else None
    of_images: dict[Fault, NDArray[np.bool_]] = {"duplicate": copies}
    if hashes:  # takes minutes; runs after the database has released its memory
        of_images["near_duplicate"] = near_copies(*hashes, copies, cfg.near)
    of_texts: dict[Fault, NDArray[np.bool_]] = {fault: mask[image] for fault, mask in of_images.items()}
    of_texts["repeated"] = repeated
    reasons = np.concatenate([np.empty(0, dtype=np.int8), *rows.reasons])
    for fault, mask in of_texts.items():
        if cfg.drops(fault):
            mark(reasons, mask, fault)
    late: dict[Fault, int] = {fault: int(mask.sum()) for fault, mask in of_images.items()}
    late["repeated"] = int(repeated.sum())
    return Selection(reasons, count_selection(rows, image, reasons, late))


@dataclass
class RowFacts:
    """The few bytes per row that stay in memory."""

    reasons: list[NDArray[np.int8]] = field(default_factory=list)
    web: list[NDArray[np.bool_]] = field(default_factory=list)
    first: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether a row is the first of its image."""
    faults: Counter[Fault] = field(default_factory=Counter)
    """Numbers of images and texts by fault."""
    total: int = 0
    images: int = 0

    def add(self, table: pa.Table, image: NDArray[np.int64], reasons: NDArray[np.int8]) -> None:
        first = np.diff(image, prepend=-1) > 0
        self.reasons.append(reasons)
        self.web.append(is_web(table))
        self.first.append(first)
        self.total += len(table)
        self.images += int(first.sum())
        column = table["faults"].combine_chunks().dictionary_encode()
        codes, different = column.indices.to_numpy(), column.dictionary.to_pylist()
        texts = np.bincount(codes, minlength=len(different)).tolist()
        heads = np.bincount(
            codes[first], minlength=len(different)
        ).tolist()  # an image counts once, however many texts it has
        for faults, of_text, of_image in zip(different, texts, heads, strict=True):
            for fault in faults.split():
                self.faults[fault] += of_image if fault in get_args(ImageFault) else of_text

    @property
    def image(self) -> NDArray[np.int32]:
        """The image number `(rows,)` of each row in the whole data set."""
        return np.cumsum(np.concatenate([np.empty(0, dtype=bool), *self.first]), dtype=np.int32) - np.int32(1)


def add_images(groups: Groups, table: pa.Table, image: NDArray[np.int64], kept: NDArray[np.bool_], before: int) -> None:
    """Adds the decoded images of a table; `before` images precede it."""
    first_row = np.flatnonzero(np.diff(image, prepend=-1))
    decoded = table["width"].to_numpy()[first_row] > 0
    has_kept = np.bincount(image[kept], minlength=len(first_row)) > 0
    digests = table["sha256"].take(pa.array(first_row[decoded])).combine_chunks()
    hashes = table["phash"].to_numpy()[first_row[decoded]]
    groups.add_images(np.flatnonzero(decoded) + before, digests, hashes, has_kept[decoded])


def add_texts(groups: Groups, table: pa.Table, before: int) -> None:
    """Adds the web texts of a table, in lower case and stripped; `before` rows precede it."""
    web = is_web(table)
    texts = table["text"].filter(pa.array(web)).combine_chunks()
    same = pc.call_function("utf8_trim_whitespace", [pc.call_function("utf8_lower", [texts])])
    groups.add_texts(np.flatnonzero(web) + before, same)


def near_copies(
    images: NDArray[np.int64], hashes: NDArray[np.uint64], copies: NDArray[np.bool_], near: int
) -> NDArray[np.bool_]:
    """Returns which images are near duplicates of earlier ones, exact copies left out."""
    different = ~copies[images]
    found = np.zeros(len(copies), dtype=bool)
    found[images[different]] = near_duplicates(hashes[different], near)
    return found


def mask_of(numbers: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """Returns a mask `(total,)` that is true at `numbers`."""
    found = np.zeros(total, dtype=bool)
    found[numbers] = True
    return found


def count_selection(
    rows: RowFacts, image: NDArray[np.int32], reasons: NDArray[np.int8], late: dict[Fault, int]
) -> dict[str, int]:
    """Counts texts by source (all, kept, dropped by reason) and images (all, kept, by fault, dropped or not)."""
    counts: dict[str, int] = {}
    web = np.concatenate([np.empty(0, dtype=bool), *rows.web])
    for source, of_source in (("web", web), ("synthetic", ~web)):
        by_reason = np.bincount(reasons[of_source], minlength=len(REASONS)).tolist()
        counts |= {source: sum(by_reason), f"{source}.kept": by_reason[0]}
        counts |= {f"{source}.dropped.{name}": n for name, n in zip(REASONS, by_reason, strict=True) if n and name}
    kept = mask_of(image[reasons == 0].astype(np.int64), rows.images)
    counts |= {"images": rows.images, "images.kept": int(kept.sum())}
    found = {**rows.faults, **late}
    return counts | {f"found.{fault}": found[fault] for fault in ALL_FAULTS if found.get(fault)}
