"""Selection rules over stored scores."""

from collections.abc import Callable
from typing import Annotated, Literal, Self, assert_never, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from blip.capfilt.quality import ImageFault, TextFault
from blip.config import Config


class Thresholds(Config):
    web: float = Field(default=0.5, ge=0, le=1)
    synthetic: float = Field(default=0.5, ge=0, le=1)


class Matched(Thresholds):
    """Keeps texts whose p(match) reaches the threshold of their source (BLIP, section 3.3)."""

    type: Literal["matched"] = "matched"
    origins: dict[str, Thresholds] = Field(default_factory=dict)
    """Thresholds for the pairs of single collections, by name."""


class Best(Config):
    """Keeps the best `keep` texts of each image, web and synthetic ranked together (BLIP-2, section 3.3)."""

    type: Literal["best"] = "best"
    keep: int = Field(default=2, ge=1)
    by: str = "similarity"
    """The column of the score: `similarity` of ITC or `match` of ITM; of another filter `clip.similarity`."""


OF_CAPTIONER = "log_probability"
"""The column of the log-probability of a synthetic text under its captioner."""


class Limit(Config):
    """The least score of kept texts: a value, the one that leaves a share of them, or the one that leaves mostly true
    ones."""

    score: str = "match"
    """The column of the score, such as `match`, `similarity` or `clip.similarity`; of synthetic texts also
    `log_probability`, by which the captioner ranks what it wrote."""
    least: float | None = None
    share: float | None = Field(default=None, ge=0, le=1)
    """Keeps the best texts up to this share, 0 to 1, of those of the source that have the score and no fault that drops
    them; equal scores stay or go together."""

    precision: float | None = Field(default=None, gt=0, lt=1)
    """Keeps as many web texts as leave this share of true ones among them, 0 to 1, estimated from decoys
    (`capfilt.stream.decoys`)."""

    @model_validator(mode="after")
    def one_is_set(self) -> Self:
        if sum(value is not None for value in (self.least, self.share, self.precision)) != 1:
            raise ValueError(f"limit of {self.score}: set one of least, share and precision")
        return self


class Combined(Config):
    """Keeps texts whose scores reach limits, of one filter or of several side by side."""

    type: Literal["combined"] = "combined"
    need: Literal["all", "any"] = "all"
    """Whether a text must reach all limits of its source, or one of them."""
    web: tuple[Limit, ...] = Field(default=(Limit(least=0.5),), min_length=1)
    synthetic: tuple[Limit, ...] = Field(default=(Limit(least=0.5),), min_length=1)

    @model_validator(mode="after")
    def decoys_are_of_web_texts(self) -> Self:
        if any(limit.precision is not None for limit in self.synthetic):
            raise ValueError(
                "synthetic: a limit has a precision, which is estimated for web texts alone: what a captioner writes "
                "wrongly still resembles its image, and another image's text does not; set least or share"
            )
        return self

    @model_validator(mode="after")
    def web_texts_have_no_captioner(self) -> Self:
        if any(limit.score == OF_CAPTIONER for limit in self.web):
            raise ValueError(f"web: a limit has {OF_CAPTIONER}, which only synthetic texts have; name a filter's score")
        return self


class SumLimit(Config):
    """The least weighted sum of kept texts: a value, or the one that leaves a share of them."""

    least: float | None = None
    share: float | None = Field(default=None, ge=0, le=1)
    """Keeps the best texts up to this share, 0 to 1, of those of the source, as a limit of one score does."""

    @model_validator(mode="after")
    def one_is_set(self) -> Self:
        if (self.least is None) == (self.share is None):
            raise ValueError("limit of the weighted sum: set one of least and share")
        return self


class Weighted(Config):
    """Keeps texts whose weighted sum of scores, of one filter or of several side by side, reaches a limit."""

    type: Literal["weighted"] = "weighted"
    weights: dict[str, float] = Field(min_length=1)
    """Weight by column of the scores, such as `{match: 1, clip.similarity: 3}`: similarities of CLIP differ less than
    p(match) does. A text without one of the scores is dropped as unscored."""
    web: SumLimit = SumLimit(share=0.5)
    synthetic: SumLimit = SumLimit(share=0.5)


Rule = Annotated[Matched | Best | Combined | Weighted, Field(discriminator="type")]
Fault = ImageFault | TextFault
ALL_FAULTS: tuple[Fault, ...] = (*get_args(ImageFault), *get_args(TextFault))
FATAL: frozenset[Fault] = frozenset({"undecodable", "truncated", "too_large", "empty", "not_utf8"})
"""Faults that always drop an image or a text."""
REASONS = ("", *ALL_FAULTS, "unscored", "unmatched", "outranked")
"""Reasons to drop a text; the empty one at position 0 means kept."""


class SelectionConfig(Config):
    rule: Rule = Matched()
    drop: tuple[Fault, ...] = ("several", "small", "elongated", "animated", "opted_out", "duplicate", "long")
    """Faults that drop an image or a text; other faults are only counted. FATAL faults always drop."""
    near: int = Field(default=4, ge=0, le=16)
    """Images are near duplicates if their perceptual hashes differ in at most this many of 64 bits."""
    repeats: int = Field(default=100, ge=1)
    """A web text that more images than this share is `repeated`."""

    def drops(self, fault: Fault) -> bool:
        return fault in FATAL or fault in self.drop


def drop_reasons(table: pa.Table, cfg: SelectionConfig, scored: bool) -> NDArray[np.int8]:
    """Returns for each text the position in REASONS `(rows,)`, 0 if kept; duplicates are found later.

    With `scored` texts without the scores of the rule are dropped; otherwise every text without faults is kept. Limits
    must have values (`cutoffs.with_values`).
    """
    reasons = faulty(table, cfg)
    if not scored:
        return reasons
    match cfg.rule:
        case Matched():
            mark(reasons, np.isnan(score_column(table, "match")), "unscored")
            mark(reasons, score_column(table, "match") < thresholds(table, cfg.rule), "unmatched")
        case Best():
            mark(reasons, np.isnan(score_column(table, cfg.rule.by)), "unscored")
            mark(
                reasons,
                ranks_in_groups(score_column(table, cfg.rule.by), images(table), reasons == 0) >= cfg.rule.keep,
                "outranked",
            )
        case Combined():
            scored_enough, reached = combined(table, cfg.rule)
            mark(reasons, ~scored_enough, "unscored")
            mark(reasons, ~reached, "unmatched")
        case Weighted():
            sums = weighted_sums(table, cfg.rule)
            needed = np.where(is_web(table), cfg.rule.web.least or 0.0, cfg.rule.synthetic.least or 0.0)
            mark(reasons, np.isnan(sums), "unscored")
            mark(reasons, sums < needed.astype(np.float32), "unmatched")
        case _:
            assert_never(cfg.rule)
    return reasons


def score_columns(rule: Rule) -> tuple[str, ...]:
    """Returns the columns of the scores that a rule reads, the one to show first."""
    match rule:
        case Matched():
            return ("match",)
        case Best():
            return (rule.by,)
        case Combined():
            return tuple(dict.fromkeys(limit.score for limit in (*rule.web, *rule.synthetic)))
        case Weighted():
            return tuple(rule.weights)
        case _:
            assert_never(rule)


def combined(table: pa.Table, rule: Combined) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which texts `(rows,)` have the scores that the rule needs, and which reach its limits."""
    web = is_web(table)
    over = np.all if rule.need == "all" else np.any
    scored, reached = np.zeros(len(table), dtype=bool), np.zeros(len(table), dtype=bool)
    for of_source, limits in ((web, rule.web), (~web, rule.synthetic)):
        columns = [score_column(table, limit.score)[of_source] for limit in limits]
        pairs = zip(columns, limits, strict=True)
        scored[of_source] = over([~np.isnan(column) for column in columns], axis=0)
        reached[of_source] = over([column >= np.float32(limit.least or 0) for column, limit in pairs], axis=0)
    return scored, reached


def weighted_sums(table: pa.Table, rule: Weighted) -> NDArray[np.float32]:
    """Returns the weighted sum of each text's scores `(rows,)`, NaN where one is missing."""
    columns = [score_column(table, name) * np.float32(weight) for name, weight in rule.weights.items()]
    return np.asarray(np.sum(columns, axis=0), dtype=np.float32)


def mark(reasons: NDArray[np.int8], where: NDArray[np.bool_], reason: str) -> None:
    """Sets the reason of the rows in `where` that have none yet."""
    reasons[(reasons == 0) & where] = REASONS.index(reason)


def faulty(table: pa.Table, cfg: SelectionConfig) -> NDArray[np.int8]:
    """Returns for each text the position in REASONS of its, or its image's, first dropping fault."""
    dropped = [fault for fault in ALL_FAULTS if cfg.drops(fault)]
    column = table["faults"].combine_chunks().dictionary_encode()
    reasons = [
        next((REASONS.index(fault) for fault in dropped if fault in faults.split()), 0)
        for faults in column.dictionary.to_pylist()
    ]
    return np.array(reasons, dtype=np.int8)[column.indices.to_numpy()]


def where(table: pa.Table, name: str, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Evaluates a predicate `(rows,)` on a string column with few distinct values."""
    column = table[name].combine_chunks().dictionary_encode()
    return np.array([holds(value) for value in column.dictionary.to_pylist()], dtype=bool)[column.indices.to_numpy()]


def thresholds(table: pa.Table, rule: Matched) -> NDArray[np.float32]:
    """Returns the threshold of each text `(rows,)`, in the precision of the stored p(match)."""
    web = is_web(table)
    needed = np.where(web, rule.web, rule.synthetic)
    for origin, other in rule.origins.items():
        of_origin = where(table, "origin", origin.__eq__)
        needed = np.where(of_origin, np.where(web, other.web, other.synthetic), needed)
    return needed.astype(np.float32)


def ranks_in_groups(
    scores: NDArray[np.float32], groups: NDArray[np.int64], taking_part: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Returns each score's rank in its group, 0 for the highest; ties keep their order, excluded rows rank last."""
    order = np.lexsort((-scores, ~taking_part, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    places = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    result = np.empty(len(order), dtype=np.int64)
    result[order] = places
    return result


def images(table: pa.Table) -> NDArray[np.int64]:
    """Returns each text's image number `(rows,)`; the first row of an image is its first web text."""
    return np.cumsum(is_web(table) & (table["number"].to_numpy() == 0)) - 1


def is_web(table: pa.Table) -> NDArray[np.bool_]:
    return where(table, "source", "web".__eq__)


def score_column(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Returns a column of scores `(rows,)`, NaN for null."""
    return table[name].to_numpy().astype(np.float32)
