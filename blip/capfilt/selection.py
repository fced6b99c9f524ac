"""Which texts of a whole data set are kept: a pure function of the stored scores, so that another threshold needs no model."""

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

SELECTION_COLUMNS = ["source", "number", "text", "match", "similarity", "faults", "sha256", "phash", "width", "origin"]
"""What a selection reads of the tables of scores."""


@dataclass
class Selection:
    """The position in REASONS `(rows,)` of why each text is dropped, 0 where it is kept; and what was counted on the way."""

    reasons: NDArray[np.int8]
    counts: dict[str, int]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.reasons == 0


def select_texts(tables: Iterable[pa.Table], cfg: SelectionConfig, scored: bool) -> Selection:
    """Decides about all texts of tables, which come in the order of the shards and are seen once; `scored` if a filter has scored them.

    Of duplicates one image stays: the first with a text to keep, or else the first. A few bytes of each row stay in memory.
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
    if hashes:  # what takes minutes is done for those who want it, once the database has given its memory back
        of_images["near_duplicate"] = mark_near_copies(*hashes, copies, cfg.near)
    reasons = np.concatenate([np.empty(0, dtype=np.int8), *rows.reasons])
    found: dict[Fault, NDArray[np.bool_]] = {
        **{fault: where[image] for fault, where in of_images.items()},
        "repeated": repeated,
    }
    for fault, where in found.items():
        if cfg.drops(fault):
            mark(reasons, where, fault)
    late: dict[Fault, int] = {
        **{fault: int(where.sum()) for fault, where in of_images.items()},
        "repeated": int(repeated.sum()),
    }
    return Selection(reasons, count_selection(rows, image, reasons, late))


@dataclass
class RowFacts:
    """What stays in memory of each row while tables pass."""

    reasons: list[NDArray[np.int8]] = field(default_factory=list)
    web: list[NDArray[np.bool_]] = field(default_factory=list)
    first: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether a row is the first one of its image."""
    faults: Counter[Fault] = field(default_factory=Counter)
    """Images and texts by what is wrong with them."""
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
        """The number `(rows,)` of each row's image in the whole data set."""
        return np.cumsum(np.concatenate([np.empty(0, dtype=bool), *self.first]), dtype=np.int32) - np.int32(1)


def add_images(groups: Groups, table: pa.Table, image: NDArray[np.int64], kept: NDArray[np.bool_], before: int) -> None:
    """Takes the decoded images of a table in, `before` being the number of images that came before."""
    first_row = np.flatnonzero(np.diff(image, prepend=-1))
    decoded = table["width"].to_numpy()[first_row] > 0
    has_kept = np.bincount(image[kept], minlength=len(first_row)) > 0
    digests = table["sha256"].take(pa.array(first_row[decoded])).combine_chunks()
    hashes = table["phash"].to_numpy()[first_row[decoded]]
    groups.add_images(np.flatnonzero(decoded) + before, digests, hashes, has_kept[decoded])


def add_texts(groups: Groups, table: pa.Table, before: int) -> None:
    """Takes the web texts of a table in, letter case and outer space aside, `before` being the number of rows that came before."""
    web = is_web(table)
    texts = table["text"].filter(pa.array(web)).combine_chunks()
    same = pc.call_function("utf8_trim_whitespace", [pc.call_function("utf8_lower", [texts])])
    groups.add_texts(np.flatnonzero(web) + before, same)


def mark_near_copies(
    images: NDArray[np.int64], hashes: NDArray[np.uint64], copies: NDArray[np.bool_], near: int
) -> NDArray[np.bool_]:
    """Images whose picture is nearly one that came before, copies byte for byte left out."""
    different = ~copies[images]
    found = np.zeros(len(copies), dtype=bool)
    found[images[different]] = near_duplicates(hashes[different], near)
    return found


def mask_of(numbers: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """Whether each number below `total` is among these."""
    found = np.zeros(total, dtype=bool)
    found[numbers] = True
    return found


def count_selection(
    rows: RowFacts, image: NDArray[np.int32], reasons: NDArray[np.int8], late: dict[Fault, int]
) -> dict[str, int]:
    """Texts by source, in all, kept, and dropped by reason; images, in all, kept, and by every fault found, dropped for it or not."""
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
