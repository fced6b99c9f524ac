"""Which texts of a whole data set are kept: a pure function of the stored scores, so that another threshold needs no model."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from blip.capfilt.duplicates import first_of_each, near_duplicates
from blip.capfilt.hygiene import ImageFault
from blip.capfilt.rules import FAULTS, REASONS, Fault, SelectionConfig, decide, has_fault, images, is_web, mark

Found = dict[Fault, NDArray[np.bool_]]
"""Where `(rows,)` a fault was found."""


@dataclass
class Selection:
    """The position in REASONS `(rows,)` of why each text is dropped, 0 where it is kept; and what was counted on the way."""

    reasons: NDArray[np.int8]
    counts: dict[str, int]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.reasons == 0


def select(table: pa.Table, cfg: SelectionConfig, judged: bool) -> Selection:
    """Decides about all texts of a table whose rows stand in the order of the shards; `judged` if a filter has scored them.

    Of duplicates one image stays: the first with a text to keep, or else the first.
    """
    reasons, image = decide(table, cfg, judged), images(table)
    found: Found = {**duplicates(table, image, reasons == 0, cfg.near), "repeated": repeated(table, cfg.repeats)}
    for fault, rows in found.items():
        if cfg.drops(fault):
            mark(reasons, rows, fault)
    return Selection(reasons, count(table, image, reasons, found))


def duplicates(table: pa.Table, image: NDArray[np.int64], kept: NDArray[np.bool_], near: int) -> Found:
    """Texts `(rows,)` whose image is, byte for byte or nearly, one that came before."""
    first_row = np.flatnonzero(np.diff(image, prepend=-1))
    decoded = np.flatnonzero(table["width"].to_numpy()[first_row] > 0)
    has_kept = np.bincount(image[kept], minlength=len(first_row)) > 0
    order = decoded[np.argsort(~has_kept[decoded], kind="stable")]
    digests = table["sha256"].combine_chunks().dictionary_encode().indices.to_numpy()[first_row[order]]
    exact, close = np.zeros((2, len(first_row)), dtype=bool)
    exact[order] = first_of_each(digests) != np.arange(len(order))
    rest = order[~exact[order]]
    close[rest] = near_duplicates(table["phash"].to_numpy()[first_row[rest]], near)
    return {"duplicate": exact[image], "near_duplicate": close[image]}


def repeated(table: pa.Table, repeats: int) -> NDArray[np.bool_]:
    """Web texts `(rows,)` that come with more than so many images, letter case and outer space aside."""
    lower = pc.call_function("utf8_trim_whitespace", [pc.call_function("utf8_lower", [table["text"].combine_chunks()])])
    text = lower.dictionary_encode().indices.to_numpy()
    web = is_web(table)
    return web & (np.bincount(text[web], minlength=text.max(initial=0) + 1)[text] > repeats)


def count(table: pa.Table, image: NDArray[np.int64], reasons: NDArray[np.int8], found: Found) -> dict[str, int]:
    """Texts by source, in all, kept, and dropped by reason; images, in all, kept, and by every fault found, dropped for it or not."""
    counts = {}
    web = is_web(table)
    for source, rows in (("web", web), ("synthetic", ~web)):
        counts |= {source: int(rows.sum()), f"{source}.kept": int((rows & (reasons == 0)).sum())}
        dropped = np.bincount(reasons[rows], minlength=len(REASONS)).tolist()
        counts |= {f"{source}.dropped.{name}": n for name, n in zip(REASONS, dropped, strict=True) if n and name}
    counts |= {"images": int(image.max(initial=-1) + 1), "images.kept": len(np.unique(image[reasons == 0]))}
    first = np.diff(image, prepend=-1) > 0  # what is wrong with an image counts once, however many texts it has
    for fault in FAULTS:
        rows = found.get(fault, has_fault(table, fault)) & (first if fault in get_args(ImageFault) else True)
        counts |= {f"found.{fault}": int(rows.sum())} if rows.any() else {}
    return counts
