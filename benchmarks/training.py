"""Measures the time of a training step: the engine and its loop against a plain PyTorch loop, in one process.

All variants train the same model on the same batch with the same fused AdamW and gradient clipping. They alternate, so
that other load on the machine affects all of them. Times are CPU time of one thread, or wall-clock time on a GPU.
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
from blip.config import load_config
from blip.data.tokenizer import Tokenizer
from blip.distributed import device
from blip.runs.config import RunConfig
from blip.tasks.task import Task
from blip.training.engine import Engine, EngineConfig
from blip.training.engine import precision as chosen_precision
from blip.training.loop import fit
from blip.training.meter import Meter
from blip.training.optimizer import build_optimizer

WORDS = ["a", "photo", "of", "the", "small", "large", "red", "green", "blue", "circle", "square", "left", "right"]

Variant = Callable[[int], object]
"""Runs a number of training steps."""


def main(
    preset: str = typer.Option("shapes", help="Preset of the task, model and optimizer."),
    stage: str = typer.Option("pretrain", help="Stage of the preset."),
    batch: int = typer.Option(64, help="Images per step."),
    precision: str = typer.Option("auto", help="auto, fast, fp32 or bf16."),
    steps: int = typer.Option(10, help="Steps per round."),
    rounds: int = typer.Option(7, help="Rounds of each variant; the median is reported."),
) -> None:
    """Prints milliseconds per step and images per second of each variant, and its time relative to the plain loop."""
    torch.set_num_threads(1)
    cfg = load_config(RunConfig, stage, preset, [f"engine.precision={precision}"])
    tokenizer = Tokenizer.train([" ".join(WORDS)], vocab_size=200)
    cfg = cfg.with_tokenizer(tokenizer)
    torch.manual_seed(0)
    task = cfg.task.build_task(cfg.task.build_model(cfg.model), tokenizer)
    data = task.collate([example(i, cfg.transform.size) for i in range(batch)])
    variants = {"plain PyTorch": plain(copy.deepcopy(task), data, cfg)}
    for zero in (0, 1):
        variants[f"engine, ZeRO {zero}"] = engine(copy.deepcopy(task), data, cfg, zero)
    times = measure(variants, steps, rounds)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "one CPU thread"
    title = f"{preset} {stage}, batch {batch}, {precision}; {where}"
    table = Table("variant", "ms/step", "images/s", "time / plain loop's", title=title)
    for name, seconds in times.items():
        ratio = seconds / times["plain PyTorch"]
        table.add_row(name, f"{1000 * seconds:.1f}", f"{batch / seconds:,.0f}", f"{ratio:.3f}")
    Console().print(table)


def example(number: int, size: int) -> Example:
    draws = torch.Generator().manual_seed(number)
    words = [WORDS[i] for i in torch.randint(len(WORDS), (10,), generator=draws)]
    image = torch.randint(256, (3, size, size), generator=draws, dtype=torch.uint8)
    return Example(str(number), image, [" ".join(words)])


def plain(task: Task, data: Batch, cfg: RunConfig) -> Variant:
    """A minimal training loop in PyTorch, without the engine."""
    task.to(device()).train()
    optimizer = build_optimizer(task, cfg.optimizer)
    bf16 = chosen_precision(cfg.engine) == "bf16"
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


def engine(task: Task, data: Batch, cfg: RunConfig, zero: int) -> Variant:
    """The engine and its loop, with the meter of a real run."""
    settings = EngineConfig.model_validate({"zero": zero, "precision": cfg.engine.precision})
    trained = Engine(task, settings, cfg.optimizer, cfg.schedule, steps=0, steps_per_epoch=100)
    meter = Meter(trained, lambda *_: None, every=10)

    def run(steps: int) -> None:
        trained.steps = trained.step + steps
        fit(trained, repeat(data), [meter])

    return run


def measure(variants: dict[str, Variant], steps: int, rounds: int) -> dict[str, float]:
    """Returns seconds per step of each variant, the median over rounds in which the variants alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for name in [*variants, *list(variants) * rounds]:  # the first round warms up
        began = now()
        variants[name](steps)
        seconds[name].append((now() - began) / steps)
    return {name: median(times[1:]) for name, times in seconds.items()}


def now() -> float:
    """Returns wall-clock seconds after the GPU's work, or this process's CPU seconds without a GPU."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
