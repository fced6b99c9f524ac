"""What a run on this machine leaves and shows at its end: the published report, and its figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipelines.run_lock import root_errors
from pipelines.step_outputs import Outputs, artifacts, pages

OUTPUT_FILES = "files/output"
"""Where an output of a step has its files in the store (`blip/runs/outputs.py`)."""


def print_summary(latest: Path) -> None:
    """Prints the table of before and after, in a process of its own since the import takes seconds."""
    subprocess.run([sys.executable, "-m", "blip.cli", "summary", latest / "summary.json"], check=True)


def print_tasks(latest: Path, console: Console) -> None:
    """Prints the scores of each downstream task, and what the gate said."""
    found = json.loads((latest / "summary.json").read_bytes())
    for task, scores in found["scores"].items():
        others = {"no image": found["baseline"].get(task, {}), "before CapFilt": found["first"].get(task, {})}
        beside = {
            score: ", ".join(f"{known[score]:.4g} {whose}" for whose, known in others.items() if score in known)
            for score in scores
        }
        shown = (f"{score} {value:.4g}{f' ({beside[score]})' * bool(beside[score])}" for score, value in scores.items())
        console.print(f"[bold]{task}[/] " + ", ".join(shown))
    for task, reason in found["reasons"].items():
        console.print(escape(f"{task}: {reason}"))


def publish(report: Outputs, root: Path, link: str = "latest", model: str = "") -> Path:
    """Copies the report to its run's folder, points a link to that folder, and returns the link.

    `model` is the URI of the step's output that holds the run's model, to which `model` in the folder points if it is
    on this machine. Raises RootError if the disk is full.
    """
    (page,), metrics = pages(report), artifacts(report)["metrics"]
    folder = metrics.parent.parent
    latest, new = root / link, root / f".{link}"
    with root_errors(root):
        for made, name in ((page.path, "report.html"), (metrics, "summary.json")):
            shutil.copy2(made, folder / f".{name}")
            (folder / f".{name}").replace(folder / name)
        if model and (files := Path(model, OUTPUT_FILES)).is_dir():
            (folder / "model").unlink(missing_ok=True)
            (folder / "model").symlink_to(files)
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(latest)
    return latest
