"""Time of a training step: the engine and its loop beside a plain PyTorch loop over the same model and batches, in one process.

All train the same model by the same fused AdamW with the gradient clipped; they take turns, so that a busy machine is busy for all.
On a CPU processor time of one thread is measured, on a GPU time by the clock.
`python benchmarks/training.py [--preset shapes] [--stage pretrain] [--batch 64] [--precision bf16]`
"""

import copy
import time
from collections.abc import Callable
from itertools import repeat
from statistics import median

import torch
import typer
from rich.console import Console
from rich.table import Table

from blip.batch import Batch, Example
from blip.config import load
from blip.data.tokenizer import Tokenizer
from blip.distributed import device
from blip.runs.config import RunConfig
from blip.tasks.build import build_model, build_task
from blip.tasks.task import Task
from blip.training.engine import Engine, EngineConfig
from blip.training.loop import fit
from blip.training.meter import Meter
from blip.training.optimizer import build_optimizer

WORDS = ["a", "photo", "of", "the", "small", "large", "red", "green", "blue", "circle", "square", "left", "right", "above", "below"]

Way = Callable[[int], object]
"""Makes so many steps."""


def main(
    preset: str = typer.Option("shapes", help="The preset whose task, model and optimizer are taken."),
    stage: str = typer.Option("pretrain", help="The stage of it."),
    batch: int = typer.Option(64, help="Images of a step."),
    precision: str = typer.Option("auto", help="auto, fp32 or bf16."),
    steps: int = typer.Option(10, help="Steps of a turn."),
    rounds: int = typer.Option(7, help="Turns of each way; the median counts."),
) -> None:
    """Prints milliseconds a step and images a second of each way, and its ratio to the plain loop."""
    torch.set_num_threads(1)
    cfg = load(RunConfig, stage, preset, [f"engine.precision={precision}"])
    tokenizer = Tokenizer.train([" ".join(WORDS)], vocab_size=200)
    cfg = cfg.with_tokenizer(tokenizer)
    torch.manual_seed(0)
    task = build_task(cfg.task, build_model(cfg.task, cfg.model), tokenizer)
    data = task.collate([example(i, cfg.transform.size) for i in range(batch)])
    ways = {"plain PyTorch": plain(copy.deepcopy(task), data, cfg)}
    for zero in (0, 1):
        ways[f"engine, ZeRO {zero}"] = engine(copy.deepcopy(task), data, cfg, zero)
    times = measure(ways, steps, rounds)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "one CPU thread"
    table = Table(
        "way", "ms a step", "images a second", "of the plain loop's time", title=f"{preset} {stage}, batch {batch}, {precision}; {where}"
    )
    for name, seconds in times.items():
        ratio = seconds / times["plain PyTorch"]
        table.add_row(name, f"{1000 * seconds:.1f}", f"{batch / seconds:,.0f}", f"{ratio:.3f}")
    Console().print(table)


def example(number: int, size: int) -> Example:
    draws = torch.Generator().manual_seed(number)
    words = [WORDS[i] for i in torch.randint(len(WORDS), (10,), generator=draws)]
    return Example(str(number), torch.randint(256, (3, size, size), generator=draws, dtype=torch.uint8), [" ".join(words)])


def plain(task: Task, data: Batch, cfg: RunConfig) -> Way:
    """What one would write without any of this."""
    task.to(device()).train()
    optimizer = build_optimizer(task, cfg.optimizer)
    bf16 = cfg.engine.precision == "bf16" or (cfg.engine.precision == "auto" and device().type == "cuda")
    parameters = [p for p in task.parameters() if p.requires_grad]

    def run(steps: int) -> None:
        for step in range(steps):
            task.on_step(step, steps)
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                losses = task(data.to(device()))
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, cfg.optimizer.grad_clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            task.after_step()

    return run


def engine(task: Task, data: Batch, cfg: RunConfig, zero: int) -> Way:
    """The engine in its loop, with the meter that a run has."""
    settings = EngineConfig.model_validate({"zero": zero, "precision": cfg.engine.precision})
    trained = Engine(task, settings, cfg.optimizer, cfg.schedule, steps=0, steps_per_epoch=100)
    meter = Meter(trained, lambda *_: None, every=10)

    def run(steps: int) -> None:
        trained.steps = trained.step + steps
        fit(trained, repeat(data), [meter])

    return run


def measure(ways: dict[str, Way], steps: int, rounds: int) -> dict[str, float]:
    """Seconds a step of each way, the median over rounds in which the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name in [*ways, *list(ways) * rounds]:  # a first turn to warm up
        began = now()
        ways[name](steps)
        seconds[name].append((now() - began) / steps)
    return {name: median(turns[1:]) for name, turns in seconds.items()}


def now() -> float:
    """Seconds of the clock once the GPU is done, or of this process's work where there is none."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
