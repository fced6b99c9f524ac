"""What a step shows of itself: its figures as a table, and a page with the way to its MLflow run."""

import json
import math
import os
import time
from pathlib import Path

from kfp.dsl import Markdown, Metrics

HIDDEN = ("params", "curves")
"""Figures that are no results."""


def show(figures: dict, metrics: Metrics, card: Markdown) -> None:
    """Puts a step's figures where the interface of Kubeflow Pipelines shows them, and into the artifacts' files.

    Numbers become the table, but for those of `params`, which MLflow has; the reason under `gate` stands above it; a link under `mlflow`
    leads from the card to the run; `seconds` are those of the whole step. Kubeflow Pipelines refuses numbers that are not finite, and a
    metrics artifact without its file would never come from the cache.
    """
    figures = {**figures, "seconds": seconds()}
    shown = flat({name: value for name, value in figures.items() if name not in HIDDEN})
    numbers = {name: value for name, value in shown.items() if isinstance(value, bool | int | float) and math.isfinite(value)}
    metrics.metadata.update(numbers)
    Path(metrics.path).write_text(json.dumps(figures, indent=1, sort_keys=True))
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in numbers.items())
    reason = f"{figures['gate']}\n\n" if figures.get("gate") else ""
    alarms = "".join(f"**Alarm:** {alarm['name']} at step {alarm['step']}\n\n" for alarm in figures.get("alarms", ()))
    link = f"\n[The run in MLflow]({figures['mlflow']})\n" if figures.get("mlflow") else ""
    Path(card.path).write_text(f"{reason}{alarms}| figure | value |\n|---|---:|\n{rows}{link}")


def seconds() -> float:
    """How long this process has lived: a step begins with the first import, not with the first image."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def flat(values: dict, prefix: str = "") -> dict:
    """Nested figures under dotted names."""
    found: dict = {}
    for name, value in values.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found
