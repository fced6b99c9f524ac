"""CapFilt: a caption for every web image, and of both texts those that match."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip.budget import open_budget
from blip.capfilt.job import CapFiltConfig, Job
from blip.capfilt.result import Result, assemble, sweep
from blip.capfilt.rules import SelectionConfig
from blip.config import ConfigError, load, set_value, validate
from blip.data.discover import discover
from blip.data.manifest import Manifest
from blip.launch.local import share
from blip.logs import log, progress
from blip.report import capfilt_figures, capfilt_page
from blip.storage import Store, open_store, probe
from blip.tracking import DataInput, Run
from blip.tracking import start as track
from blip.workers.local_pool import on_this_machine
from blip.workers.model import ModelSource
from blip.workers.progress import Tallies, Workers, follow
from blip.workers.queue import records

MANIFEST, METRICS, PICTURES = "bootstrapped.json", "metrics.json", "pictures.json"


def capfilt(
    preset: str,
    overrides: Sequence[str],
    store: str,
    revision: str,
    data: str,
    captioner: str | None,
    filter: str | None,
    out: str,
    page: str | None = None,
    *,
    workers: Workers | None = None,
    name: str = "capfilt",
) -> dict[str, Any]:
    """Bootstraps the web pairs of a data folder with two model folders and makes `out`, the data folder to pre-train on again.

    There `bootstrapped.json`, also under the web manifest's name, says what was kept, and all else is as in `data`. Shards that anybody
    has done before are not done again. `out` gets figures and pictures, `page` a page of them; the figures are returned. Workers run on
    this machine unless `workers` starts them elsewhere.
    Raises ConfigError; StoreError where the store lacks what workers need; WorkerError and ShardError where work was lost.
    """
    began = time.monotonic()
    cfg = load(CapFiltConfig, "capfilt", preset, overrides)
    store = store or str(Path(out, "store"))
    root = open_store(store)
    probe(root)
    job = Job(
        config=cfg,
        input=read_input(cfg.source, data),
        captioner=published(root, "captioner", captioner) if cfg.variant != "filter" else None,
        filter=published(root, "filter", filter) if cfg.variant != "captioner" else None,
        revision=revision,
    )
    budget = open_budget(cfg.max_gpu_hours, store, job.account, gpus=0)  # the workers hold them
    job = job.model_copy(update={"ledger": budget.ledger.uri})
    home = root.join("capfilt", job.identity)
    job.save(home)
    parents = {"data": job.input.digest, **job.models}
    inputs = [DataInput(cfg.source, job.input.digest, job.input.root, "capfilt", job.input.samples)]
    with track(name, tags={"revision": revision}, parents=parents, key=home.uri, inputs=inputs) as run:
        run.params(cfg.model_dump(mode="json"))
        speed = watch(job, home, workers or (lambda uri: on_this_machine(uri, share(cfg.workers), Path(out, "logs"))), run)
        result = assemble(job, home, cfg.selection)
        sweep(result)
        found = write(result, cfg.source, data, Path(out), page)
        shares = {f"capfilt/{source}/{what}": share for source, part in found["capfilt"].items() for what, share in part.items()}
        run.metrics({name: share for name, share in shares.items() if share is not None})
        for file in (MANIFEST, METRICS, PICTURES):
            run.artifact(Path(out, file))
        return {**found, "speed": speed, "gpu_hours": budget.hours, "mlflow": run.url, "seconds": time.monotonic() - began}


def watch(job: Job, store: Store, workers: Workers, run: Run) -> dict[str, Any]:
    """Shows a CapFilt job's progress until its workers are done, here and as curves of the run; starts none where nothing is left to do.

    Returns images a second, those of each worker, and the share of time that each part of the work took.
    """
    done, dead = records(store, job.shards)
    if len(done) + len(dead) == len(job.shards):
        log.info("every shard of job %s is done already", job.identity)
        return {}
    behind = sum(record["samples"] for record in done.values())
    tallies = Tallies.since_now(store, len(done))
    with progress(max(job.input.samples, behind), "capfilt", "images", done=behind) as bar:

        def look() -> None:
            bar.advance(min(behind + int(tallies.sum("images")), bar.total) - bar.done, tallies.beside_the_bar())
            run.metrics(tallies.curves(), step=round(tallies.seconds))

        follow(tallies, workers, job.config.report, look)
    return tallies.speed()


def rethreshold(kept: str, out: str, threshold: str = "", overrides: Sequence[str] = (), page: str | None = None) -> dict[str, Any]:
    """Selects anew among the scores of an earlier CapFilt, whose folder is `kept`, without a model and without touching its shards.

    `threshold` is the p(match) from which on a text is kept, `0.6` or by source `web=0.7,synthetic=0.5`; empty leaves the rule as it is.
    Overrides of `selection` say more, such as `selection.repeats=50`. `out` is as of `capfilt`. Raises ConfigError.
    """
    manifest = Manifest.load(Path(kept, MANIFEST))
    job = Job.load(manifest.root)
    values = {"selection": {**manifest.meta["selection"], **({"rule": thresholds(threshold)} if threshold else {})}}
    for override in overrides:
        if not override.startswith("selection."):
            raise ConfigError(f"override {override!r}: without models only the selection can change; write selection.KEY=VALUE")
        set_value(values, override)
    cfg = validate(SelectionConfig, values["selection"], "selection")
    return write(assemble(job, manifest.store, cfg), job.config.source, kept, Path(out), page)


def thresholds(text: str) -> dict[str, Any]:
    """The rule that `0.6` or `web=0.7,synthetic=0.5` stands for. Raises ConfigError."""
    try:
        parts = dict(part.split("=") for part in text.split(",")) if "=" in text else dict.fromkeys(("web", "synthetic"), text)
        return {"type": "matched", **{source.strip(): float(value) for source, value in parts.items()}}
    except ValueError:
        raise ConfigError(f"threshold {text!r} must be a number from 0 to 1, or one for each source: web=0.7,synthetic=0.5") from None


def read_input(source: str, data: str) -> Manifest:
    """The manifest of that name in the data folder, or one of the tars that a pattern, folder or prefix names."""
    path = Path(data, f"{source}.json")
    if path.is_file():
        return Manifest.load(path)
    if is_name(source):
        way_out = "name a manifest of the data folder, or tars such as s3://bucket/web/{0000..0041}.tar"
        raise ConfigError(f"source {source!r}: there is no {path}; {way_out}")
    log.info("reading the tars of %s for their digests", source)
    return discover(source, "web")


def is_name(source: str) -> bool:
    """Whether a source is a manifest of the data folder rather than tars somewhere."""
    return not any(mark in source for mark in "/{.")


def published(root: Store, role: str, folder: str | None) -> ModelSource:
    try:
        return ModelSource.publish(root, role, folder)
    except ConfigError as e:
        raise ConfigError(f"{e}, or set variant to do without") from None


def write(result: Result, source: str, data: str, out: Path, page: str | None) -> dict[str, Any]:
    """Fills the folder to pre-train on again, and returns the figures."""
    out.mkdir(parents=True, exist_ok=True)
    web = f"{source}.json" if is_name(source) else "web.json"
    made = {web, MANIFEST, METRICS, PICTURES, "logs", "store"}
    shutil.copytree(data, out, ignore=lambda folder, _: made if Path(folder) == Path(data) else (), dirs_exist_ok=True)
    for name in (MANIFEST, web):
        result.manifest.save(out / name)
    truth = capfilt_figures.truths(result)
    found = {**capfilt_figures.figures(result, truth), "dead": dict(result.dead)}
    chosen = capfilt_figures.pictures(result, truth)
    capfilt_figures.save_pictures(chosen, out / PICTURES)
    (out / METRICS).write_text(json.dumps(found, indent=1, sort_keys=True))
    if page:
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text(capfilt_page.html(found, chosen))
    return found
