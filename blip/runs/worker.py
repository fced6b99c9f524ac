"""A worker of a job, `python -m blip.runs.worker JOB`: any number may run, on this machine or in pods."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from blip.budget import Budget, gpus_held
from blip.capfilt.job import CapFiltJob
from blip.capfilt.shard import ShardCapFilt
from blip.config import EXIT_CONFIG, ConfigError
from blip.distributed import device
from blip.evaluation.job import run_evaluation_worker
from blip.launch.local import local_process_count
from blip.logs import log, quiet
from blip.storage import open_store
from blip.tasks.captioning import Captioning
from blip.tasks.model_folder import as_captioner, as_filter, load_task, read_model_config
from blip.tasks.pretraining import Pretraining
from blip.tasks.retrieval import Retrieval
from blip.workers.job import type_of
from blip.workers.local_pool import on_this_machine
from blip.workers.progress import CHECK_SECONDS
from blip.workers.queue import ShardQueue, new_worker_name
from blip.workers.worker import Worker


def work(uri: str, name: str = "") -> None:
    """Works on the job at a URI until all its shards are done or set aside."""
    workers = {"capfilt": caption_and_filter, "evaluation": run_evaluation_worker}
    workers[type_of(uri)](uri, name or new_worker_name())


def caption_and_filter(uri: str, name: str) -> None:
    job, store = CapFiltJob.load(uri), open_store(uri)
    shards = {shard.name: shard for shard in job.input.shards}
    queue = ShardQueue(store, list(shards), name, job.config.lease)
    if not queue.pending():
        log.info("no shard is left of job %s", uri)
        return
    captioner, text_filter = load_models(job)
    bootstrap = ShardCapFilt(job.config, captioner, text_filter, job.input.store, job.revision, job.config.threads)
    budget = Budget(job.config.max_gpu_hours, open_store(job.ledger or f"{uri}/gpu-hours"), job.account, gpus_held())
    try:
        Worker(queue, job.input.store, shards, bootstrap, job.config.report, budget.check).run()
    finally:
        budget.record()


def load_models(job: CapFiltJob) -> tuple[Captioning | None, Retrieval | None]:
    """Loads captioner and filter to this process's device; one pre-trained model for both is loaded only once."""
    with ExitStack() as stack:
        folders = {role: stack.enter_context(source.folder()) for role, source in job.models.items()}
        if len(folders) == 2 and len(set(job.digests.values())) == 1:
            both = load_task(folders["captioner"])
            if not isinstance(both, Pretraining):
                raise ConfigError(
                    f"model {folders['captioner']} is given as captioner and filter: only a pre-trained model is both"
                )
            captioner = Captioning(as_captioner(both.cfg), both.model, both.tokenizer)
            text_filter = Retrieval(as_filter(both.cfg), both.model, both.tokenizer)
        else:
            captioner = load_captioner(folders["captioner"]) if "captioner" in folders else None
            text_filter = load_filter(folders["filter"]) if "filter" in folders else None
    if captioner:
        captioner.eval().to(device())
    if text_filter:
        del text_filter.alignment  # used only in training
        text_filter.eval().to(device())
    return captioner, text_filter


def load_captioner(folder: Path) -> Captioning:
    """Loads a model folder as captioner. Raises ConfigError if its model cannot caption."""
    task = load_task(folder, as_captioner(read_model_config(folder).task))
    assert isinstance(task, Captioning)
    return task


def load_filter(folder: Path) -> Retrieval:
    """Loads a model folder as filter. Raises ConfigError if its model cannot match."""
    task = load_task(folder, as_filter(read_model_config(folder).task))
    assert isinstance(task, Retrieval)
    return task


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
