"""Images a second of pre-training on a machine that has other work, by how its threads wait for one another.

Threads of OpenMP spin for a while before they sleep. Alone that saves the time to wake them; beside another program
they spin for a thread that the other keeps from its core. Each way trains alone, beside a program that never waits, and
beside another such training. Run it on a machine that does nothing else: `python benchmarks/busy.py [--seconds 20]
[--threads 2] [--preset shapes]`
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.table import Table

WAYS = {
    "libgomp as it is": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (0, 100, 1000, 10_000, 100_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""How threads may wait, as the environment says it."""
OURS = "GOMP_SPINCOUNT"
"""What `blip` sets by itself: the first way needs it as if it did not."""


def main(
    seconds: float = typer.Option(20.0, help="Time of one measurement."),
    threads: int = typer.Option(2, help="Threads of a training."),
    rounds: int = typer.Option(3, help="Measurements of each kind, in which the ways take turns; the median counts."),
    preset: str = typer.Option("shapes", help="The preset whose pre-training is measured."),
    ways: str = typer.Option("", help="Only ways whose name holds this."),
    child: bool = typer.Option(False, hidden=True),
) -> None:
    """Prints a table: a row for each way, a column for each kind of company."""
    if child:
        print(json.dumps(train(preset, seconds)))  # noqa: T201
        return
    found: dict[tuple[str, str], list[float]] = {}
    chosen = {name: environment for name, environment in WAYS.items() if ways in name}
    for _ in range(rounds):
        for name, environment in chosen.items():
            whole = {"OMP_NUM_THREADS": str(threads), OURS: "", **environment}
            for company, rates in measure(whole, preset, seconds).items():
                found.setdefault((name, company), []).append(rates)
    companies = list(dict.fromkeys(company for _, company in found))
    table = Table(
        "threads wait",
        *companies,
        title=f"images a second, {preset} pre-training, {threads} threads of {os.cpu_count()} cores",
    )
    for name in chosen:
        table.add_row(name, *(f"{median(found[name, company]):,.0f}" for company in companies))
    Console().print(table)


def measure(environment: dict[str, str], preset: str, seconds: float) -> dict[str, float]:
    """Images a second of one training by its company; of two trainings the slower one's."""
    with burning():
        busy = min(rates_of(1, environment, preset, seconds))
    return {
        "alone": min(rates_of(1, environment, preset, seconds)),
        "beside a busy program": busy,
        "beside another training": min(rates_of(2, environment, preset, seconds)),
    }


def rates_of(count: int, environment: dict[str, str], preset: str, seconds: float) -> list[float]:
    """Images a second of so many trainings at a time."""
    command = [sys.executable, str(Path(__file__)), "--child", "--preset", preset, "--seconds", str(seconds)]
    given = {name: value for name, value in {**os.environ, **environment}.items() if value or name != OURS}
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True))
            for _ in range(count)
        ]
        return [float(json.loads(child.communicate()[0])) for child in children]


@contextmanager
def burning():
    """A program beside that never waits."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def train(preset: str, seconds: float) -> float:
    """Images a second of a pre-training over one batch, made again and again, after some steps to warm up."""
    import torch  # here: it reads the environment
    from training import WORDS, example

    from blip.config import load_config
    from blip.data.tokenizer import Tokenizer
    from blip.runs.config import RunConfig
    from blip.training.engine import Engine

    tokenizer = Tokenizer.train([" ".join(WORDS)], vocab_size=200)
    cfg = load_config(RunConfig, "pretrain", preset).with_tokenizer(tokenizer)
    torch.manual_seed(0)
    task = cfg.task.build_task(cfg.task.build_model(cfg.model), tokenizer)
    batch = task.collate([example(i, cfg.transform.size) for i in range(cfg.loader.batch)])
    engine = Engine(task, cfg.engine, cfg.optimizer, cfg.schedule, steps=1 << 30, steps_per_epoch=100)
    batches = repeat([batch])
    warm_up = time.monotonic() + min(5.0, seconds / 2)
    while time.monotonic() < warm_up:
        engine.train(next(batches))
    began, first = time.monotonic(), engine.step
    while time.monotonic() - began < seconds:
        engine.train(next(batches))
    return (engine.step - first) * len(batch) / (time.monotonic() - began)


if __name__ == "__main__":
    typer.run(main)
