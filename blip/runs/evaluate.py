"""Evaluate: how well a model retrieves and describes images that it never saw."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from blip.batch import Example
from blip.config import Config, load
from blip.data.datasets.shapes import is_true
from blip.data.manifest import Manifest
from blip.data.sample import Sample
from blip.data.transforms import decode, eval_transform
from blip.distributed import device, is_main, start
from blip.evaluation import EvaluationConfig, predict
from blip.logs import progress
from blip.runs.budget import gpus_held, open_budget
from blip.runs.model import load_task, read_run
from blip.runs.processes import spread, to_start, words
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tracking import folder_digest
from blip.tracking import start as track

DESCRIBED = 12
"""Captions of so many test images are shown in the report."""


class EvaluateConfig(Config):
    split: str = "test"
    """The manifest to judge by."""
    retrieval: RetrievalConfig | None = RetrievalConfig()
    """How images and texts are found; none leaves it out."""
    captioning: CaptioningConfig | None = CaptioningConfig()
    """How captions are written; none leaves it out."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours that all steps of a run may take together; once they are spent it does not begin. None sets no bound."""


def evaluate(
    preset: str, overrides: Sequence[str], store: str, revision: str, data: str, model: str, out: str, *, processes: int = 0
) -> dict[str, Any]:
    """Judges a model folder on a split of the data folder; `out` gets `metrics.json` and every caption.

    Retrieval is R@1, 5, 10 both ways after re-ranking; captions are scored against people's and, where the world's truth is known,
    by the share of them that is true. It runs in so many processes of this machine, 0 for one a GPU.
    """
    began = time.monotonic()
    cfg = load(EvaluateConfig, f"{preset}_evaluate", overrides)
    if count := to_start(processes):
        options = {"--preset": preset, "--store": store, "--revision": revision, "--data": data, "--model": model, "--out": out}
        return spread(["evaluate", *words(options, overrides)], count)
    start()
    manifest = Manifest.load(Path(data) / f"{cfg.split}.json")
    digest = folder_digest(Path(model))
    budget = open_budget(cfg.max_gpu_hours, store, f"evaluate-{digest[:12]}", gpus_held())
    prepare = partial(example, size=read_run(model).model.vision.size)
    tasks = [task for task in (cfg.retrieval, cfg.captioning) if task is not None]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    described: dict[str, str] = {}
    with (
        track("evaluate", tags={"revision": revision}, parents={"data": manifest.digest, "model": digest}) as run,
        progress(len(tasks) * min(manifest.samples, cfg.evaluation.limit or manifest.samples), "judging") as bar,
    ):
        for task_cfg in tasks:
            task = load_task(model, task_cfg).to(device())
            predictions = predict(task, manifest, prepare, cfg.evaluation, bar.advance)
            if not is_main() and not task.scored_together:
                continue
            scores = task.score(predictions)
            if not is_main():
                continue
            if isinstance(task_cfg, CaptioningConfig):
                scores |= truth(predictions)
                (folder / "captions.json").write_text(json.dumps(predictions, indent=1))
                described = {p["key"]: p["caption"] for p in predictions[:DESCRIBED]}
            figures[task_cfg.type] = scores
            run.metrics({f"{cfg.split}/{task_cfg.type}/{k}": v for k, v in scores.items()})
        if is_main():
            (folder / "metrics.json").write_text(json.dumps(figures, indent=1, sort_keys=True))
            run.artifacts(folder)
    return {**figures, "described": described, "gpu_hours": budget.hours, "mlflow": run.url, "seconds": time.monotonic() - began}


def example(sample: Sample, size: int) -> Example:
    """A sample to be judged by: its whole image and all its texts."""
    return Example(sample.key, eval_transform(size)(decode(sample.images[0])), sample.texts, sample.meta)


def truth(predictions: list[dict[str, Any]]) -> dict[str, float]:
    """The share of captions that are true, if the samples say what is."""
    known = [p for p in predictions if "truth" in p["meta"]]
    return {"true": sum(is_true(p["meta"]["truth"], p["caption"]) for p in known) / len(known)} if known else {}
