"""A short training of a small task, for tests that something is learnt."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from blip.models.bert import TextConfig
from blip.shards.sample import Sample
from blip.tasks.task import Task

WIDTH, BATCH = 32, 32


def small_text(vocab_size: int) -> TextConfig:
    return TextConfig(
        vocab_size=vocab_size,
        width=WIDTH,
        depth=2,
        heads=2,
        feed_forward=64,
        positions=48,
        init_std=0.18,
        dropout=0.0,
    )


def descend(
    task: Task,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    view: Callable[[bytes], Tensor],
    steps: int,
    lr: float,
) -> None:
    """Trains for some steps on random batches; a group's rate is scaled where the optimizer says so."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        drawn = rng.integers(len(samples), size=BATCH)
        batch = task.collate([task.prepare(samples[i], view, rng) for i in drawn])
        task.on_step(step, steps)
        task.look_ahead([batch])
        optimizer.zero_grad()
        torch.stack(list(task(batch).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        task.after_step()
