"""Measures how well each score of CapFilt ranks true web texts above wrong ones, where the truth is known.

AUC; the share of true texts that could be kept at a precision; and what `blip select --precision` keeps there by its
decoys, with the precision that this has. `python benchmarks/ranking.py --data scored`, the output of `blip capfilt`.
"""

import numpy as np
import pyarrow as pa
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from blip.capfilt.cutoffs import count_precise
from blip.capfilt.rules import is_web, score_column
from blip.capfilt.scores import Scores
from blip.capfilt.table import decoy_column
from blip.datasets.judge import judge_of
from blip.report.capfilt_figures import truths
from blip.runs.select import read_source

Scored = NDArray[np.float32]


def main(
    data: str = typer.Option(..., help="The folder that `blip capfilt` wrote."),
    precision: float = typer.Option(0.9, help="The share of true texts wanted among those that are kept."),
) -> None:
    """Prints a row for each score."""
    scores = Scores.load(read_source(data))
    judge = judge_of(scores.job.input)
    if judge is None:
        raise typer.BadParameter(f"--data {data}: nobody knows which texts of this data set are true")
    names = scores.given()
    read = ["source", "key", "text", "members", *names, *map(decoy_column, names)]
    tables = list(scores.tables(read))
    store = scores.job.input.store
    true = np.concatenate([truths(store, *pair, judge) for pair in zip(scores.shards, tables, strict=True)])
    whole = pa.concat_tables(tables)
    known = is_web(whole) & ~np.isnan(true)
    shown = Table("score", "AUC", "could be kept", "decoys keep", "their precision", title=f"precision {precision:g}")
    for name in names:
        score, decoys = score_column(whole, name), score_column(whole, decoy_column(name))
        rows = known & ~np.isnan(score)
        ascending = np.sort(score[rows])
        kept = count_precise(ascending, np.sort(decoys[~np.isnan(decoys)]), precision)
        best = true[rows][np.argsort(-score[rows], kind="stable")]
        shares = [auc(score[rows], true[rows]), recall_at(best, precision), best[:kept].sum() / best.sum()]
        right = f"{best[:kept].mean():.1%}" if kept else "-"
        shown.add_row(name, f"{shares[0]:.3f}", *(f"{share:.1%}" for share in shares[1:]), right)
    Console().print(shown)


def auc(score: Scored, true: NDArray[np.float64]) -> float:
    """Returns the chance that a true text has a higher score than a wrong one; ties count half."""
    wrong, right = np.sort(score[true == 0]), score[true == 1]
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / (2 * len(wrong)))


def recall_at(best_first: NDArray[np.float64], precision: float) -> float:
    """Returns the largest share of true texts among the best ones that have this precision."""
    true = np.cumsum(best_first)
    reached = np.flatnonzero(true / np.arange(1, len(true) + 1) >= precision)
    return float(true[reached[-1]] / true[-1]) if len(reached) else 0.0


if __name__ == "__main__":
    typer.run(main)
