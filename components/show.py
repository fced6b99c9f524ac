"""A step's metrics and card for the interface of Kubeflow Pipelines."""

import os
import time
from pathlib import Path
from typing import Any

from kfp.dsl import Markdown, Metrics


def show(result: Any, metrics: Metrics, card: Markdown) -> None:
    """Writes a verb's result as metrics file, metrics metadata and card; `seconds` becomes the time of the whole step.

    KFP does not reuse a cached step whose metrics artifact has no file.
    """
    result = result.model_copy(update={"seconds": process_seconds()})
    result.save(metrics.path)
    figures = result.compared()
    metrics.metadata.update(figures)
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in figures.items())
    link = f"\n[The run in MLflow]({result.mlflow})\n" if result.mlflow else ""
    notes = "".join(f"{note}\n\n" for note in result.notes())
    Path(card.path).write_text(f"{notes}| figure | value |\n|---|---:|\n{rows}{link}", encoding="utf-8")


def process_seconds() -> float:
    """Returns the seconds since this process started, which include the imports."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
