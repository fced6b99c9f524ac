"""The summary of BLIP-2: captions and answers of each language model, with and without the first stage or CapFilt."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Literal, Self

from pydantic import Field
from rich.console import Group

from blip.config import ConfigError, validate
from blip.report.summary import Figures, SummaryRow, columns, summary_row
from blip.results import Change, KeptBySource, Noise

LANGUAGE_MODELS = {"opt": "OPT", "t5": "T5"}
"""The kinds of language models, and their names on pages: decoder-only ones, and those with an encoder."""
LanguageModelKind = Literal["opt", "t5"]
Lacking = Literal["stage1", "capfilt"]
"""What the models that others are compared with did without: the first stage, or CapFilt."""
LACKING: dict[Lacking, str] = {"stage1": "the first stage", "capfilt": "CapFilt"}


class LanguageScores(Figures):
    """The scores of a language model that reads a Q-Former."""

    true: float | None
    """Share of true captions, 0 to 1; None if unknown."""
    cider: float | None
    """None if no test image has a caption of a person."""
    accuracy: float | None
    """Accuracy of answers in percent; None if no test image has questions."""
    accuracies: dict[str, float] = Field(default_factory=dict)
    """The same by kind of question."""


class Answered(Figures):
    """A language model's scores without the first stage or CapFilt and with it, and what guessing reaches."""

    scores: Change[LanguageScores]
    chance: float | None
    """Accuracy in percent of the most frequent answer to each kind of question; None without questions."""
    registered: bool
    """Whether the model with it passed the gate."""


class Selected(Figures):
    """What CapFilt kept, and the shares of true texts, 0 to 1; None if the truth is not known."""

    noise: Noise
    kept: KeptBySource
    texts: Change[float | None]
    """True ones among the web's texts, and among all texts that were kept."""


class Blip2Summary(Figures):
    type: Literal["blip2"] = "blip2"
    lacking: Lacking = "stage1"
    models: dict[LanguageModelKind, Answered]
    selected: Selected | None = None
    """None if CapFilt is no part of the pipeline."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time of each step, and `total`."""

    @property
    def registered(self) -> bool:
        return all(model.registered for model in self.models.values())

    def compared(self) -> dict[str, float]:
        """Returns the key figures for the comparison of runs, by name; those that were measured."""
        found: dict[str, float | None] = {"registered": float(self.registered)}
        for kind, model in self.models.items():
            name = LANGUAGE_MODELS[kind]
            found |= {
                f"{name} CIDEr": model.scores.after.cider,
                f"{name} accuracy": model.scores.after.accuracy,
                f"{name} accuracy {'alone' if self.lacking == 'stage1' else 'before'}": model.scores.before.accuracy,
            }
        if self.selected and self.selected.texts.after is not None:
            found["true texts kept"] = self.selected.texts.after
        if "total" in self.seconds:
            found["hours"] = self.seconds["total"] / 3600
        return {name: value for name, value in found.items() if value is not None and isfinite(value)}

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, values: Mapping[str, object], path: str | Path) -> Self:
        """Returns the summary of a file's values. Raises ConfigError if they are something else."""
        return validate(cls, dict(values), f"summary {path} is not that of a run of BLIP-2")


def blip2_rows(summary: Blip2Summary) -> list[SummaryRow]:
    """Returns the table of without and with the first stage or CapFilt; in every row greater is better."""
    found = []
    if summary.selected:
        shares = {"all kept": summary.selected.texts, **dict(summary.selected.noise)}
        found += [
            summary_row("True texts", name, share.before, share.after, 100, "%") for name, share in shares.items()
        ]
    for kind, model in summary.models.items():
        group, before, after = LANGUAGE_MODELS[kind], model.scores.before, model.scores.after
        found += [
            summary_row(group, "captions true", before.true, after.true, 100, "%"),
            summary_row(group, "CIDEr", before.cider, after.cider),
            summary_row(group, "answers right", before.accuracy, after.accuracy, 1, "%"),
        ]
        for name in after.accuracies:
            found.append(summary_row(group, f"… {name}", before.accuracies.get(name), after.accuracies[name], 1, "%"))
    return found


def blip2_headline(summary: Blip2Summary) -> str:
    """Summarises the outcome in one sentence."""
    found = []
    for kind, model in summary.models.items():
        before, after, lacking = model.scores.before, model.scores.after, LACKING[summary.lacking]
        if after.accuracy is not None and before.accuracy is not None and model.chance is not None:
            found.append(
                f"{LANGUAGE_MODELS[kind]} answers {after.accuracy:.0f}% of the questions right "
                f"({before.accuracy:.0f}% without {lacking}, {model.chance:.0f}% by guessing)"
            )
        elif after.cider is not None and before.cider is not None:
            found.append(
                f"{LANGUAGE_MODELS[kind]} describes images with a CIDEr of {after.cider:.3f} "
                f"({before.cider:.3f} without {lacking})"
            )
    return "; ".join(found) + "." if found else "The test images have neither captions nor questions to score by."


def blip2_table(summary: Blip2Summary) -> Group:
    """Renders the table for a terminal."""
    name = {"stage1": "stage 1", "capfilt": "CapFilt"}[summary.lacking]
    table = columns("", f"without {name}", f"with {name}", "change")
    group = ""
    for row in blip2_rows(summary):
        if group and row.group != group:
            table.add_row()
        group = row.group
        style = {True: "green", False: "red", None: "dim"}[row.better]
        table.add_row(
            f"{row.group}, {row.name}", f"[dim]{row.before}[/]", f"[bold]{row.after}[/]", f"[{style}]{row.change}[/]"
        )
    passed = (
        "[green]Both models passed the gate.[/]"
        if summary.registered
        else "[yellow]Not both models passed the gate.[/]"
    )
    total = summary.seconds.get("total")
    took = f" All of it took {total / 60:.1f} minutes." if total is not None else ""
    return Group(f"[bold]{blip2_headline(summary)}[/]", "", table, "", f"{passed}{took}")


def read_values(path: str | Path) -> dict[str, object]:
    """Reads a summary's values. Raises ConfigError if the file is something else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"summary {path} is not a run's summary: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"summary {path} is not a run's summary: it holds a {type(values).__name__}")
    return values
