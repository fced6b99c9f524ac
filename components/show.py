"""What the interface of Kubeflow Pipelines shows of a step: the figures by which runs are compared, and a card."""

import os
import time
from pathlib import Path
from typing import Any

from kfp.dsl import Markdown, Metrics


def show(result: Any, metrics: Metrics, card: Markdown) -> None:
    """Writes a verb's result as the step's metrics; `seconds` become those of the whole step.

    A metrics artifact without its file would never come from the cache.
    """
    result = result.model_copy(update={"seconds": process_seconds()})
    result.save(metrics.path)
    figures = result.compared()
    metrics.metadata.update(figures)
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in figures.items())
    link = f"\n[The run in MLflow]({result.mlflow})\n" if result.mlflow else ""
    notes = "".join(f"{note}\n\n" for note in result.notes())
    Path(card.path).write_text(f"{notes}| figure | value |\n|---|---:|\n{rows}{link}")


def process_seconds() -> float:
    """Returns how long this process has lived: a step begins with the first import, not with the first image."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
