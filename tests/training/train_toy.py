"""Runs jobs of the toy task one after another in one process group; the last may be killed."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Literal

import torch
from toy import TeacherlessTask, ToyTask, batches

from blip.distributed import init_distributed, is_main, rank, shutdown_distributed, world
from blip.storage import open_store
from blip.training.checkpoint import CheckpointConfig, Checkpoints
from blip.training.engine import Engine, EngineConfig, StepReport
from blip.training.loop import fit, regularly
from blip.training.optimizer import OptimizerConfig, ScheduleConfig


class InterruptedRunError(Exception):
    pass


def make_engine(checkpoints: Checkpoints, steps: int, accumulation: int, zero: Literal[0, 1, 2, 3] | None) -> Engine:
    """Returns the toy task at the newest checkpoint, or at its first step."""
    torch.manual_seed(1 + rank())  # ranks begin with different weights, and must not go on with them
    found = checkpoints.newest()
    return Engine(
        TeacherlessTask() if zero == 3 else ToyTask(),
        EngineConfig(zero=zero),
        OptimizerConfig(lr=1e-2, grad_clip=1.0, layer_decay=0.5, layer_decay_of="student"),
        ScheduleConfig(warmup_steps=2),
        steps=steps,
        steps_per_epoch=4,
        seed=3,
        state=found.state if found else None,
        step=found.step if found else 0,
        accumulation=accumulation,
    )


def run(
    folder: str,
    steps: int,
    accumulation: int,
    zero: Literal[0, 1, 2, 3] | None = None,
    until: int | None = None,
    kill: bool = False,
) -> None:
    checkpoints = Checkpoints(open_store(folder), CheckpointConfig(keep=2), {"seed": 3})
    engine = make_engine(checkpoints, steps, accumulation, zero)
    first, losses = engine.step, []

    def note(report: StepReport) -> None:
        losses.append(report.losses)
        if report.step == until:
            checkpoints.wait()
            write(folder, first, losses)
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedRunError

    try:
        saving = regularly(2, 10.0, [lambda _: checkpoints.save(engine)])
        fit(engine, batches(first, accumulation), [saving, note], checkpoints)
    except InterruptedRunError:
        return
    write(folder, first, losses)


def write(folder: str, first: int, losses: list[dict[str, float]]) -> None:
    if is_main():
        Path(folder, f"losses-{first}-on-{world()}").write_text(json.dumps(losses))


def main(rank: int, world: int, port: int, jobs: list[dict], log: str) -> None:
    """Runs as one process of a group."""
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    init_distributed(60)
    for job in jobs:
        run(**job)
    shutdown_distributed()
