"""The verb train: trains any stage and saves its model folder."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blip.batch import Example
from blip.budget import gpus_held, open_budget
from blip.config import ConfigError
from blip.data.features import read_features
from blip.data.images import decode
from blip.data.loader import Loader
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import TransformConfig, eval_transform, train_transform
from blip.digest import value_digest
from blip.distributed import all_gather_objects, device, init_distributed, is_main, rank, world
from blip.launch.placement import Placement, on_nodes
from blip.launch.respawn import argv, processes_to_start, run_in_processes
from blip.logs import log
from blip.models.generation import Beam
from blip.models.weights.init import init_weights
from blip.progress import progress
from blip.results import TrainResult
from blip.runs.answers import answering
from blip.runs.config import RunConfig, training
from blip.runs.context import RunContext
from blip.runs.epochs import count_steps, steps_of_epoch
from blip.runs.identity import identify
from blip.runs.make_frozen import frozen_sources
from blip.runs.usable import check_sources
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import BadSample, Sample, one_sample
from blip.storage import StoreError, open_store, output_folder, write_file, writing
from blip.tasks.blip2_stage1 import Blip2Stage1
from blip.tasks.blip2_stage2 import Blip2Stage2
from blip.tasks.captioning import Captioning, CaptioningConfig
from blip.tasks.model_folder import TOKENIZER, WEIGHTS, as_captioner, save_model
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.task import Task
from blip.tracking import DataInput, start_run
from blip.training.alarms import CaptionsAlike, ItmAtPrior
from blip.training.checkpoint import Checkpoints
from blip.training.engine import Engine
from blip.training.loop import every, fit, regularly
from blip.training.meter import Meter, Profile, Speed
from blip.training.optimizer import fit_warmup
from blip.training.record import SCORE, RunRecord
from blip.training.spending import stop_when_spent
from blip.workers.model import RUN_RECORD, model_digest
from blip.zoo.source import our_model

CAPTIONED_IMAGES = 16
"""Number of images captioned during training to detect identical captions."""
CURVE_POINTS = 100
"""Points per curve in the report."""


def train(
    context: RunContext,
    stage: str,
    *,
    data: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    frozen: str | Path | None = None,
    processes: int = 0,
    profile: str | Path | None = None,
    placed: Placement | None = None,
) -> TrainResult:
    """Trains a stage on a data folder, from the model `init` or from scratch, and saves the model folder `out`.

    `init` is any source of a BLIP.
    Sources `frozen:NAME` of the settings are models of the folder `frozen`, which `make_frozen` wrote.
    Resumes from the newest checkpoint of the same run in the store. Uses `processes` processes of this machine, 0 for
    one per GPU, or the nodes of `placed`; `profile` is a folder for a torch trace of a few steps. Raises ConfigError,
    BudgetError, NonFiniteError; exits with the processes' exit code if several were started and failed.
    """
    context, cfg = with_frozen(context, stage, frozen)
    init = our_model(init, "training") if init else None
    # With several processes or nodes, each process runs this verb again through the command line and executes the last
    # line of this function.
    options = {"--preset": context.preset, "--store": context.store, "--revision": context.revision}
    if placed and placed.in_jobs:
        check_sources(cfg, Path(data))  # before nodes are waited for
        inputs = {"data": data, **({"init": init} if init else {})}
        verb = ["train", stage, *argv(options, context.overrides)]
        return on_nodes(placed, stage, verb, TrainResult, store=context.store, inputs=inputs, out=out)
    if count := processes_to_start(processes):
        places = {
            "--data": str(data),
            "--out": str(out),
            "--init": str_or_none(init),
            "--profile": str_or_none(profile),
        }
        return run_in_processes(["train", stage, *argv({**options, **places}, context.overrides)], count, TrainResult)
    return train_here(context, stage, cfg, Path(data), Path(out), Path(init) if init else None, profile)


def with_frozen(context: RunContext, stage: str, frozen: str | Path | None) -> tuple[RunContext, RunConfig]:
    """Returns a run and its stage's settings, with the places of frozen models that `make_frozen` wrote to a folder."""
    cfg = context.settings(RunConfig, training(stage))
    if places := frozen_sources(cfg, frozen):
        context = context.model_copy(update={"overrides": (*context.overrides, *places)})
        cfg = context.settings(RunConfig, stage)
    return context, cfg


def str_or_none(path: str | Path | None) -> str | None:
    """Formats an optional path for the command line."""
    return str(path) if path else None


def train_here(
    context: RunContext,
    stage: str,
    cfg: RunConfig,
    data: Path,
    out: Path,
    init: Path | None,
    profile: str | Path | None,
) -> TrainResult:
    """Trains as one of `world()` processes."""
    began = time.monotonic()
    tokenizer = Tokenizer.from_folder((init or data) / TOKENIZER)
    cfg = cfg.with_tokenizer(tokenizer).with_frozen_models()
    init_distributed(cfg.engine.timeout)
    manifests = [Manifest.load(data / f"{source}.json") for source in cfg.sources]
    cfg.check_data(manifests)
    check_sources(cfg, data)
    task = make_task(cfg, tokenizer, init)
    loader = Loader(
        manifests,
        make_prepare(cfg.transform, task),
        task.collate,
        cfg.loader,
        rank(),
        world(),
        seed=cfg.seed,
        repeats=[cfg.repeats.get(source, 1) for source in cfg.sources],
        lead=[place for place, source in enumerate(cfg.sources) if cfg.lead and source in cfg.lead.sources],
        lead_epochs=cfg.lead.epochs if cfg.lead else 0.0,
    )
    per_epoch = steps_of_epoch(cfg, manifests, loader.steps_per_epoch)
    steps = cfg.steps or loader.lead_steps + count_steps(cfg.epochs or 0, per_epoch)
    cfg = cfg.model_copy(update={"schedule": fit_warmup(cfg.schedule, steps)})
    identity = identify(cfg, manifests, tokenizer, init)
    key = value_digest(identity)
    budget = open_budget(cfg.max_gpu_hours, context.store, f"{stage}-{key[:12]}", gpus_held())
    check_out(out)
    runs = open_store(context.store).join(stage, key[:12])
    checkpoints = Checkpoints(runs, cfg.checkpoint, identity, context.revision)
    newest = checkpoints.newest()
    if newest and is_main():
        log.info("resumes from step %d of %d, saved by revision %s", newest.step, steps, newest.revision or "unknown")
    engine = Engine(
        task,
        cfg.engine,
        cfg.optimizer,
        cfg.schedule,
        steps=steps,
        steps_per_epoch=per_epoch,
        accumulation=loader.accumulation,
        seed=cfg.seed,
        state=newest.state if newest else None,
        step=newest.step if newest else 0,
    )
    del newest  # frees memory of the size of model and optimizer state
    loader.step = engine.step
    parents = {
        **dict(zip(cfg.sources, identity["data"], strict=True)),
        **({"model": identity["init"]["init"]} if init else {}),
    }
    inputs = [
        DataInput(name, found.digest, found.root, "training", found.samples)
        for name, found in zip(cfg.sources, manifests, strict=True)
    ]
    with start_run(stage, tags={"revision": context.revision}, parents=parents, key=key, inputs=inputs) as run:
        run.params(cfg.model_dump(mode="json"))
        record = RunRecord(run, runs, engine.step)
        with progress(steps * cfg.loader.batch, stage, done=engine.step * cfg.loader.batch) as bar:
            saving = [
                lambda _: checkpoints.save(engine),
                lambda _: save_record(record, loader),
                stop_when_spent(budget),
            ]
            speed = Speed()
            hooks = [
                speed,
                lambda report: bar.advance(report.samples, report.losses),
                Meter(engine, record, max(1, steps // CURVE_POINTS)),
                ItmAtPrior(record, cfg.schedule.warmup_steps, weight=cfg.itm_weight),
                regularly(cfg.checkpoint.every, cfg.checkpoint.minutes, saving),
                *(
                    [every(cfg.checkpoint.every, CaptionsAlike(record, write))]
                    if (write := caption_writer(task, cfg, manifests[0]))
                    else []
                ),
                *answering(cfg.answers, task, data, record),
                *([Profile(profile)] if profile else []),
            ]
            try:
                fit(engine, loader, hooks, checkpoints)
            finally:
                record.save()  # also after an error
        with engine.whole():
            if is_main():
                with output_folder(out) as folder:
                    save_model(task, folder)
                    settings = {**cfg.model_dump(mode="json"), "made_from": parents, "revision": context.revision}
                    write_file(folder / RUN_RECORD, json.dumps(settings, indent=1) + "\n")
        if is_main():
            run.artifacts(out, "model")
        return TrainResult(
            steps=steps,
            losses=record.losses(),
            curves=record.curves(),
            scores=record.curves(SCORE),
            alarms=record.alarms(),
            rejected=record.rejected,
            params=cfg.model_dump(mode="json"),
            images_per_second=speed.samples_per_second,
            digest=model_digest(out) if is_main() else "",
            gpu_hours=budget.total_hours(),
            mlflow=run.url,
            seconds=time.monotonic() - began,
        )


def make_task(cfg: RunConfig, tokenizer: Tokenizer, init: Path | None) -> Task:
    """Builds the task in its initial state, identical on every process."""
    torch.manual_seed(cfg.seed)
    model = cfg.task.model_from(cfg.model)
    source = cfg.init.model_copy(update={"checkpoint": str(init / WEIGHTS)}) if init else cfg.init
    init_weights(model, source, cfg.task.DIFFERENCES)
    return cfg.task.build_task(model, tokenizer)


def caption_writer(task: Task, cfg: RunConfig, manifest: Manifest) -> Callable[[], list[str]] | None:
    """Returns a function that captions the manifest's first images greedily; None if the task has no decoder."""
    if not isinstance(cfg.task, CaptioningConfig | PretrainingConfig):
        return None
    captioner = Captioning(as_captioner(cfg.task), task.model, task.tokenizer)
    images = list(islice(views(manifest, cfg.transform.size), CAPTIONED_IMAGES))

    def write() -> list[str]:
        captioner.eval()
        try:
            return task.tokenizer.decode(captioner.generate(torch.stack(images).to(device()), Beam(beams=1)).ids)
        finally:
            task.train()

    return write if images else None


def save_record(record: RunRecord, loader: Loader) -> None:
    """Saves the curves so far, and the rejected samples of all processes; collective."""
    for bad in all_gather_objects(loader.bad):
        record.reject({place: fault.reason for place, fault in bad.items()})
    record.save()


def views(manifest: Manifest, size: int) -> Iterator[Tensor]:
    """Yields the resized images `(3, size, size)` of a manifest; skips images that cannot be decoded."""
    for sample in samples(manifest):
        with suppress(BadSample), one_sample(sample.id):
            yield eval_transform(size)(decode(sample.images[0]))


def make_prepare(cfg: TransformConfig, task: Task) -> Callable[[Sample, np.random.Generator], Example]:
    """Returns a function that converts a stored sample to a training example."""
    make = task.prepare
    if isinstance(task, Blip2Stage1 | Blip2Stage2) and task.cfg.features:
        return lambda sample, rng: make(sample, read_features, rng)

    def prepare(sample: Sample, rng: np.random.Generator) -> Example:
        return make(sample, lambda image: train_transform(cfg, rng)(decode(image, cfg.max_pixels)), rng)

    return prepare


def check_out(folder: Path) -> None:
    """Raises ConfigError if the model folder cannot be written; called before training."""
    probe = folder / f".probe-{rank()}"
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
    except StoreError as e:
        raise ConfigError(f"--out {e}") from None
