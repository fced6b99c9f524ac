"""Evaluate: scores a model's tasks on held-out data."""

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip.budget import open_budget
from blip.config import ConfigError
from blip.datasets.judge import Judge, judge_of
from blip.evaluation.job import (
    EvaluateConfig,
    EvaluationJob,
    image_size,
    load_tasks,
    predict_all,
    predictions,
    sample_counts,
    samples_done,
)
from blip.launch.local import local_process_count
from blip.logs import log
from blip.progress import progress
from blip.results import EvaluationResult
from blip.runs.context import RunContext
from blip.runs.usable import without_unscored
from blip.shards.manifest import Manifest
from blip.shards.sample import format_counts
from blip.storage import open_store, output_folder, probe, write_file
from blip.tasks.captioning import CaptionPrediction, others_captions
from blip.tasks.model_folder import read_model_config
from blip.tracking import DataInput, start_run
from blip.workers.local_pool import on_this_machine
from blip.workers.model import ModelSource
from blip.workers.progress import Tallies, Workers, wait_for_workers
from blip.workers.queue import new_worker_name
from blip.zoo.source import naming, our_model

CAPTIONS, METRICS, SUBMISSIONS = "captions.json", "metrics.json", "submission"
SHOWN_CAPTIONS = 12
"""The number of test images whose captions the report shows."""


def evaluate(
    context: RunContext, *, data: str | Path, model: str | Path, out: str | Path, workers: Workers | None = None
) -> EvaluationResult:
    """Evaluates a model, any source of a BLIP, on a split of the data folder.

    `out` gets `metrics.json`, every caption, and in `submission` the files that the data sets' servers take. The scores
    are those of each task's `score`, and for captions the share of true ones if the data set's truth is known.
    Workers pull the split's shards, on this machine unless
    `workers` starts them elsewhere; predictions of an earlier evaluation of the same model are reused.
    Raises ConfigError; StoreError if the store lacks what workers need; WorkerError and ShardError if work failed.
    """
    began = time.monotonic()
    cfg = context.settings(EvaluateConfig, "evaluate")
    source, model = model, our_model(model, "evaluation")
    with naming(source, model):
        cfg = cfg.fitted(read_model_config(model).model)
    manifest = Manifest.load(Path(data) / f"{cfg.split}.json")
    cfg, not_scored = without_unscored(cfg, manifest)
    with naming(source, model):
        tasks = load_tasks(cfg, model)
    root = open_store(context.store)
    probe(root)
    models = {"model": ModelSource.publish(root, "model", model)}
    job = EvaluationJob(config=cfg, input=manifest, models=models, revision=context.revision)
    budget = open_budget(cfg.max_gpu_hours, context.store, job.account, gpus=0)  # the workers hold them
    job = job.model_copy(update={"ledger": budget.ledger.uri})
    home = job.home(root)
    home.sweep()  # temporaries of killed workers
    job.save(home)
    total = sum(job.quotas.values()) * sum(1 + task.needs_rerank for task in tasks.values())
    done = samples_done(job, home, tasks)
    processes = 0 if workers else local_process_count(cfg.workers)
    inputs = [DataInput(cfg.split, manifest.digest, manifest.root, "evaluation", manifest.samples)]
    parents = {"data": manifest.digest, "model": models["model"].digest}
    tags = {"revision": context.revision, "tasks": ", ".join(tasks)}
    with (
        start_run("evaluate", tags=tags, parents=parents, key=home.uri, inputs=inputs) as run,
        progress(total, "evaluation", done=done) as bar,
    ):
        run.params(cfg.model_dump(mode="json"))
        if done == total:
            log.info("already evaluated (%s); delete it to evaluate again", home.uri)
        elif processes == 1:
            with sigterm_as_exit():
                predict_all(job, home, tasks, image_size(model), new_worker_name(), bar.advance)
        else:
            tallies = Tallies.since_now(home, 0)
            start = workers or (lambda uri: on_this_machine(uri, processes, Path(out, "logs")))
            wait_for_workers(
                tallies,
                start,
                cfg.report,
                lambda: bar.advance(min(done + int(tallies.sum("images")), total) - bar.done),
            )
            bar.advance(
                samples_done(job, home, tasks) - bar.done
            )  # what was begun before this attempt is in nobody's tally
        scores, baseline, described = {}, {}, {}
        files: dict[str, str] = {}
        left_out = Counter[str]()
        for kind, task in tasks.items():
            evaluated, reasons = sample_counts(job, home, kind, task)
            left_out |= reasons  # a sample that several tasks reject is counted once
            if not evaluated:
                not_scored[kind] = (
                    f"none of the samples of split {cfg.split} can be evaluated: {format_counts(reasons)}"
                )
                continue
            found = predictions(job, home, kind, task)
            scores[kind], guessed = dict(task.score(found)), dict(task.baseline(found))
            not_scored |= {f"{kind}.{name}": reason for name, reason in task.not_scored(found).items()}
            for name, content in task.submission(found).items():
                files[f"{SUBMISSIONS}/{name}"] = content if isinstance(content, str) else json.dumps(content)
            if kind == "captioning":
                judge = judge_of(manifest)
                scores[kind] |= true_share(found, judge)
                guessed |= true_share(others_captions(found), judge)
                described = {p.id: p.caption for p in found[:SHOWN_CAPTIONS]}
                files[CAPTIONS] = json.dumps([vars(p) for p in found], indent=1)
            run.metrics({f"{cfg.split}/{kind}/{name}": value for name, value in scores[kind].items()})
            if guessed:
                baseline[kind] = guessed
                run.metrics({f"{cfg.split}/{kind}/baseline/{name}": value for name, value in guessed.items()})
        if not scores:
            raise ConfigError("; ".join(f"{kind}: {reason}" for kind, reason in not_scored.items()))
        result = EvaluationResult(
            split=cfg.split,
            scores=scores,
            baseline=baseline,
            described=described,
            not_scored=not_scored,
            rejected=dict(left_out),
            digest=models["model"].digest,  # the gate registers only the model that was evaluated
            gpu_hours=budget.total_hours(),
            mlflow=run.url,
            seconds=time.monotonic() - began,
        )
        with output_folder(out) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
            result.save(folder / METRICS)
        for name in (*files, METRICS):
            run.artifact(Path(out, name))
    return result


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that leases are released at once and no shard counts a failed attempt."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def true_share(predictions: list[CaptionPrediction], judge: Judge | None) -> dict[str, float]:
    """Returns the share of true captions, 0 to 1, among those whose truth is known; nothing if none is."""
    found = [judge(p.meta, p.caption) for p in predictions] if judge else []
    known = [true for true in found if true is not None]
    return {"true": sum(known) / len(known)} if known else {}
