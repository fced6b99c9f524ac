"""Trains a stage of BLIP-2 as one process of a group, up to a step at which it fails."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from blip.distributed import shutdown_distributed
from blip.runs import train as training
from blip.runs.context import RunContext
from blip.training.engine import StepReport
from blip.training.meter import Meter


class FailedRunError(Exception):
    pass


def run(
    stage: str, overrides: tuple[str, ...], data: str, folder: str, init: str | None = None, until: int | None = None
) -> Any:
    """Returns the result of a training into a folder; with `until` it fails after that step, once it is recorded."""

    class FailingMeter(Meter):
        def __call__(self, report: StepReport) -> None:
            super().__call__(report)
            if report.step == until:
                raise FailedRunError

    plain, training.Meter = training.Meter, FailingMeter
    context = RunContext(preset="base", overrides=overrides, store=f"{folder}/store")
    try:
        return training.train(context, stage, data=data, out=f"{folder}/model", init=init)
    except FailedRunError:
        return None
    finally:
        training.Meter = plain


def main(rank: int, world: int, port: int, log: str, options: dict[str, Any]) -> None:
    """Runs as one process of a group."""
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BLIP_TRACKING": "off"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    run(**options)
    shutdown_distributed()
