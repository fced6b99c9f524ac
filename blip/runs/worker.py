"""A worker of a job, `python -m blip.runs.worker JOB`: any number may run, on this machine or in pods."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from typing import Annotated

import typer

from blip.budget import Budget, gpus_held
from blip.capfilt.job import CapFiltJob
from blip.capfilt.shard import ShardCapFilt
from blip.config import EXIT_CONFIG, ConfigError
from blip.evaluation.job import run_evaluation_worker
from blip.launch.local import local_process_count
from blip.logs import log, quiet
from blip.storage import open_store
from blip.workers.job import type_of
from blip.workers.local_pool import on_this_machine
from blip.workers.progress import CHECK_SECONDS
from blip.workers.queue import ShardQueue, new_worker_name
from blip.workers.worker import Worker
from blip.zoo.contract import Captioner, Filter
from blip.zoo.load import load_both, load_captioner, load_filter


def work(uri: str, name: str = "") -> None:
    """Works on the job at a URI until all its shards are done or set aside."""
    workers = {"capfilt": caption_and_filter, "evaluation": run_evaluation_worker}
    kind = type_of(uri)
    if kind not in workers:
        raise ConfigError(f"job {uri} is of type {kind!r}; this version works on {', '.join(workers)}")
    workers[kind](uri, name or new_worker_name())


def caption_and_filter(uri: str, name: str) -> None:
    job, store = CapFiltJob.load(uri), open_store(uri)
    shards = {shard.name: shard for shard in job.input.shards}
    queue = ShardQueue(store, list(shards), name, job.config.lease)
    if not queue.pending():
        log.info("no shard is left of job %s", uri)
        return
    captioner, filters = load_models(job)
    bootstrap = ShardCapFilt(job.config, captioner, filters, job.input.store, job.revision, job.config.threads)
    budget = Budget(job.config.max_gpu_hours, open_store(job.ledger or f"{uri}/gpu-hours"), job.account, gpus_held())
    try:
        Worker(queue, job.input.store, shards, bootstrap, job.config.report, budget.check).run()
    finally:
        budget.record()


def load_models(job: CapFiltJob) -> tuple[Captioner | None, dict[str, Filter]]:
    """Loads the captioner, and the filters by name, to this process's device.

    One pre-trained model for both is loaded only once.
    """
    cfg, stream = job.config, job.config.stream
    with ExitStack() as stack:
        folders = {role: stack.enter_context(source.folder()) for role, source in job.models.items()}
        if set(folders) == {"captioner", "filter"} and len(set(job.digests.values())) == 1:
            captioner, judge = load_both(folders["captioner"], stream.decoding, stream.seed, stream.precision)
            return captioner, {"filter": judge}
        folder = folders.pop("captioner", None)
        captioner = (
            load_captioner(folder, stream.decoding, stream.seed, stream.precision, cfg.captioner) if folder else None
        )
        return captioner, {name: load_filter(path, stream.precision, cfg.filter) for name, path in folders.items()}


def end_with_parent() -> None:
    """Ends this process when its standard input is closed, because the parent has exited."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(
    job: Annotated[str, typer.Argument(help="The job's folder in the store.")],
    name: Annotated[str, typer.Option(help="This worker's name; empty for one of its own.")] = "",
    attached: Annotated[bool, typer.Option(help="End when standard input ends.")] = False,
    processes: Annotated[int, typer.Option(min=0, help="Processes of this machine; 0 is one for each GPU.")] = 0,
) -> None:
    """Work on the shards of a job, together with any number of other workers."""
    quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if attached:
        threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        count = 1 if attached else local_process_count(processes)
        if count == 1:
            work(job, name)
            return
        with on_this_machine(job, count) as working:
            while working():
                time.sleep(CHECK_SECONDS)
    except ConfigError as e:
        log.error("%s", e)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    typer.run(main)
