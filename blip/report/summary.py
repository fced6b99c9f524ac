"""The summary of a bootstrap: noise, kept texts, and both models' scores."""

import json
from math import isfinite
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field
from rich.console import Group
from rich.table import Table

from blip.config import Config, ConfigError, validate
from blip.results import Change, KeptBySource, Noise
from blip.storage import write_file


class Figures(Config):
    """Figures of a summary; one that is not finite does not fail a finished run."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")


class RetrievalScores(Figures):
    """R@1, 5, 10 in percent: of texts for an image (`tr`), of images for a text (`ir`)."""

    tr1: float
    tr5: float
    tr10: float
    ir1: float
    ir5: float
    ir10: float


class CaptionScores(Figures):
    """The share of true captions, 0 to 1, None if unknown; CIDEr and BLEU-4 on their authors' scales."""

    true: float | None
    cider: float
    bleu4: float


class Summary(Figures):
    noise: Noise
    capfilt: KeptBySource
    retrieval: Change[RetrievalScores] | None
    """None where the evaluation left it out."""
    caption: Change[CaptionScores] | None
    """None where the evaluation left it out."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time of each step, and `total`."""
    registered: bool
    """Whether the second model passed the gate and is the champion."""

    def compared(self) -> dict[str, float]:
        """Returns the key figures for the comparison of runs, by name; those that were measured."""
        measured: dict[str, float | None] = {
            "web texts kept": self.capfilt.web.kept,
            "captions kept": self.capfilt.synthetic.kept,
            "true web texts kept": self.noise.web.after,
            "registered": self.registered,
            "hours": self.seconds["total"] / 3600 if "total" in self.seconds else None,
        }
        if self.retrieval:
            before, after = self.retrieval.before, self.retrieval.after
            measured |= {"text R@1": after.tr1, "text R@1 before": before.tr1, "image R@1": after.ir1}
        if self.caption:
            measured |= {"CIDEr": self.caption.after.cider, "CIDEr before": self.caption.before.cider}
        return {name: float(value) for name, value in measured.items() if value is not None and isfinite(value)}

    def save(self, path: str | Path) -> None:
        write_file(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a summary. Raises ConfigError if the file is something else."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"summary {path} is not a run's summary: {error}") from None
        return validate(cls, values, f"summary {path} is not a run's summary")


class SummaryRow(Config):
    """A row of the table: a measure before and after, formatted."""

    group: str
    name: str
    before: str
    after: str
    change: str
    better: bool | None
    """None if it did not change or is unknown."""
    percent: tuple[float, float] | None
    """Before and after, if they are percentages and known."""


def summary_rows(summary: Summary) -> list[SummaryRow]:
    """Returns the table of before and after; in every row greater is better."""
    noise, retrieval, caption = summary.noise, summary.retrieval, summary.caption
    found = [
        summary_row("True texts", "web", noise.web.before, noise.web.after, 100, "%"),
        summary_row("True texts", "synthetic", noise.synthetic.before, noise.synthetic.after, 100, "%"),
    ]
    if retrieval:
        for group, prefix in (("Text retrieval", "tr"), ("Image retrieval", "ir")):
            for k in (1, 5, 10):
                before, after = (getattr(side, f"{prefix}{k}") for side in (retrieval.before, retrieval.after))
                found.append(summary_row(group, f"R@{k}", before, after, 1, "%"))
    if caption:
        found += [
            summary_row("Captions", "true", caption.before.true, caption.after.true, 100, "%"),
            summary_row("Captions", "CIDEr", caption.before.cider, caption.after.cider),
            summary_row("Captions", "BLEU-4", caption.before.bleu4, caption.after.bleu4),
        ]
    return found


def summary_row(
    group: str, name: str, before: float | None, after: float | None, scale: float = 1, unit: str = ""
) -> SummaryRow:
    before, after = (value if value is not None and isfinite(value) else None for value in (before, after))

    def shown(value: float | None, sign: str = "") -> str:
        if value is None:
            return "—"
        digits = f"{sign}.1f" if unit else f"{sign}.3f"
        return f"{value * scale:{digits}}" + (unit if not sign else "")

    change = None if before is None or after is None else after - before
    return SummaryRow(
        group=group,
        name=name,
        before=shown(before),
        after=shown(after),
        change=shown(change, "+"),
        better=change > 0 if change else None,
        percent=(before * scale, after * scale) if unit and before is not None and after is not None else None,
    )


def headline(summary: Summary) -> str:
    """Summarises the outcome in one sentence."""
    noise = summary.noise.web
    if summary.retrieval:
        score = moved("text R@1", summary.retrieval.before.tr1, summary.retrieval.after.tr1, ".1f", "%")
    elif summary.caption:
        score = moved("CIDEr", summary.caption.before.cider, summary.caption.after.cider, ".3f")
    else:
        score = "no model was evaluated"
    if noise.before is None or noise.after is None:
        return f"{score[0].upper()}{score[1:]}; {summary.capfilt.web.kept:.0%} of the web texts were kept."
    return f"{noise.before:.0%} of the web texts were true, {noise.after:.0%} of those kept; {score}."


def moved(name: str, before: float, after: float, digits: str, unit: str = "") -> str:
    """Describes the change of a score."""
    if not (isfinite(before) and isfinite(after)):
        return f"{name} is no number (before: {before:{digits}}{unit}, after: {after:{digits}}{unit})"
    if before == after:
        return f"{name} stayed at {after:{digits}}{unit}"
    verb = "rose" if after > before else "fell"
    return f"{name} {verb} from {before:{digits}}{unit} to {after:{digits}}{unit}"


def summary_table(summary: Summary) -> Group:
    """Renders the table for a terminal."""
    change = columns("", "before", "after", "change")
    group = ""
    for r in summary_rows(summary):
        if group and r.group != group:
            change.add_row()
        group = r.group
        style = {True: "green", False: "red", None: "dim"}[r.better]
        change.add_row(f"{r.group}, {r.name}", f"[dim]{r.before}[/]", f"[bold]{r.after}[/]", f"[{style}]{r.change}[/]")
    kept = columns("Texts", "kept", "precision", "recall")
    for name, part in (("web", summary.capfilt.web), ("synthetic", summary.capfilt.synthetic)):
        kept.add_row(name, percentage(part.kept), percentage(part.precision), percentage(part.recall))
    passed = (
        "[green]The new model is the champion.[/]"
        if summary.registered
        else "[yellow]The new model did not pass the gate.[/]"
    )
    total = summary.seconds.get("total")
    took = f" All of it took {total / 60:.1f} minutes." if total is not None else ""
    return Group(f"[bold]{headline(summary)}[/]", "", change, "", kept, "", f"{passed}{took}")


def columns(first: str, *others: str) -> Table:
    made = Table(first, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in others:
        made.add_column(name, justify="right")
    return made


def percentage(value: float | None) -> str:
    return "—" if value is None else f"{value:.0%}"
