"""CapFilt: captions every web image and scores how well each text matches."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from blip.budget import open_budget
from blip.capfilt.job import CapFiltConfig, CapFiltJob
from blip.capfilt.scores import Scores
from blip.capfilt.table import DECOY, FILTER
from blip.config import ConfigError
from blip.launch.local import local_process_count
from blip.logs import log
from blip.progress import progress
from blip.results import CapFiltResult, Speed
from blip.runs.context import RunContext
from blip.runs.select import SCORES, copy_data_folder, is_manifest_name, manifest_name, write_source
from blip.shards.discover import discover
from blip.shards.manifest import Manifest
from blip.shards.sources import WILDCARD
from blip.storage import Store, open_store, probe
from blip.tracking import DataInput, Run, start_run
from blip.workers.local_pool import on_this_machine
from blip.workers.model import ModelSource
from blip.workers.progress import Tallies, Workers, wait_for_workers
from blip.workers.queue import last_errors, shard_records
from blip.zoo.load import check_captioner, check_filter
from blip.zoo.source import model_folder, naming


def capfilt(
    context: RunContext,
    *,
    data: str | Path,
    captioner: str | Path | None,
    filter: str | Path | Mapping[str, str | Path] | None,
    out: str | Path,
    workers: Workers | None = None,
) -> CapFiltResult:
    """Captions and scores the web pairs of a data folder, or of tars, and writes `out` for `select`.

    `captioner` and `filter` are sources of models (`zoo.source`). Several filters come by name; the scores of the one
    called `filter` are the columns `match` and `similarity`, and those of another `NAME.match` and `NAME.similarity`.
    `out` is a copy of `data` with `scores.json`, a reference to the scores, in place of the web manifest. Finished
    shards are not repeated. Workers run on this machine unless `workers` starts them elsewhere.
    Raises ConfigError; StoreError if the store lacks what workers need; WorkerError and ShardError if work failed.
    """
    began = time.monotonic()
    cfg = context.settings(CapFiltConfig, "capfilt")
    checked = {role: checked_model(role, folder) for role, folder in roles(cfg, captioner, filter).items()}
    if is_tars(str(data), cfg.source):
        cfg = cfg.model_copy(update={"source": str(data)})
        Path(out).mkdir(parents=True, exist_ok=True)
        manifest = read_input(cfg.source, out)
    else:
        manifest = read_input(cfg.source, data)
        copy_data_folder(Path(data), Path(out), leave_out={manifest_name(cfg)})
    manifest.check_not_empty(f"the web data {cfg.source} of {str(data)!r}")
    root = open_store(context.store)
    probe(root)
    models = {role: ModelSource.publish(root, role, folder) for role, folder in checked.items()}
    job = CapFiltJob(config=cfg, input=manifest, models=models, revision=context.revision)
    budget = open_budget(cfg.max_gpu_hours, context.store, job.account, gpus=0)  # the workers hold them
    job = job.model_copy(update={"ledger": budget.ledger.uri})
    home = job.home(root)
    home.sweep()  # temporaries of killed workers
    job.save(home)
    parents = {"data": job.input.digest, **job.digests}
    inputs = [DataInput(cfg.source, job.input.digest, job.input.root, "capfilt", job.input.samples)]
    with start_run("capfilt", tags={"revision": context.revision}, parents=parents, key=home.uri, inputs=inputs) as run:
        run.params(cfg.model_dump(mode="json"))
        speed = run_workers(
            job,
            home,
            workers or (lambda uri: on_this_machine(uri, local_process_count(cfg.workers), Path(out, "logs"))),
            run,
        )
        scores = Scores.of(job, home)
        scores.sweep()
        write_source(scores.source, Path(out))
        return CapFiltResult(
            images=sum(record["samples"] for record in scores.done.values()),
            shards=len(scores.done),
            dead=last_errors(scores.dead),
            rejected=dict(scores.rejected),
            speed=speed,
            digest=scores.source.digest,
            gpu_hours=budget.total_hours(),
            mlflow=run.url,
            seconds=time.monotonic() - began,
        )


def is_tars(data: str, source: str) -> bool:
    """Returns whether a place is tars, rather than a data folder with the manifest of a source.

    Other JSON files may lie beside tars, such as img2dataset's records.
    """
    folder = Path(data)
    if not folder.is_dir():
        return "://" in data or bool(WILDCARD.search(data)) or "{" in data or data.endswith(".tar")
    if (folder / manifest_file(source)).is_file() or (folder / SCORES).is_file():
        return False
    return any(folder.rglob("*.tar"))


def manifest_file(source: str) -> str:
    return f"{source}.json"


def roles(
    cfg: CapFiltConfig, captioner: str | Path | None, filter: str | Path | Mapping[str, str | Path] | None
) -> dict[str, str | Path | None]:
    """Returns the models that a variant needs, by role. Raises ConfigError if a filter has the name of another role."""
    filters = dict(filter) if isinstance(filter, Mapping) else {FILTER: filter}
    for name in filters:
        if not re.fullmatch(r"\w[\w-]*", name) or name in ("captioner", DECOY):
            raise ConfigError(f"filter {name!r}: a name has letters, digits, _ and -, and is not captioner or {DECOY}")
    wanted = {"captioner": captioner} if cfg.variant != "filter" else {}
    return {**wanted, **(filters if cfg.variant != "captioner" else {})}


def run_workers(job: CapFiltJob, store: Store, workers: Workers, run: Run) -> Speed:
    """Runs the workers of a CapFilt job until they are done, with a progress bar and metrics of the run.

    Starts no workers if every shard is done. Returns the workers' speed.
    """
    done, dead = shard_records(store, job.shards)
    if len(done) + len(dead) == len(job.shards):
        log.info("every shard of job %s is done already", job.identity)
        return Speed()
    behind = sum(record["samples"] for record in done.values())
    tallies = Tallies.since_now(store, len(done))
    with progress(max(job.input.samples, behind), "capfilt", "images", done=behind) as bar:

        def show() -> None:
            bar.advance(min(behind + int(tallies.sum("images")), bar.total) - bar.done, tallies.bar_figures())
            run.metrics(tallies.metrics(), step=round(tallies.seconds))

        wait_for_workers(tallies, workers, job.config.report, show)
    return tallies.speed()


def read_input(source: str, data: str | Path) -> Manifest:
    """Returns the manifest of that name in the data folder, or makes one of the tars that `source` names."""
    path = Path(data, manifest_file(source))
    if path.is_file():
        return Manifest.load(path)
    if is_manifest_name(source):
        if not Path(data).exists():
            raise ConfigError(f"data {data}: no such file or folder; name tars, or a folder that `blip ingest` wrote")
        way_out = (
            f"name tars such as s3://bucket/web/{{0000..0041}}.tar, or FOLDER after `blip ingest {data} --out FOLDER`, "
            "which takes pairs in any form"
        )
        if Path(data, SCORES).is_file():
            way_out = "it is the output of capfilt: run `blip select` on it first"
        raise ConfigError(f"source {source!r}: there is no {path}; {way_out}")
    log.info("reading the tars of %s for their digests", source)
    try:
        return discover(source, "web")
    except ConfigError as error:
        raise ConfigError(f"{error}; pairs in another form are taken by `blip ingest {source} --out FOLDER`") from None


def checked_model(role: str, source: str | Path | None) -> Path:
    """Returns the local folder of a model's source. Raises ConfigError, which names it, if it cannot play its role."""
    if not source:
        raise ConfigError(f"{role} '': name a model folder, or set variant to do without")
    path = model_folder(source)
    with naming(source, path, role):
        (check_captioner if role == "captioner" else check_filter)(path)
    return path
