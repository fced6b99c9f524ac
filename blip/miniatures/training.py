"""The training of a small model on one process: AdamW, warm-up, cosine decay."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from blip.results import Point

WARMUP = 0.1
"""Share of the steps."""
POINTS = 50
"""Points of a curve."""


def descend(model: nn.Module, loss_of: Callable[[], Tensor], steps: int, lr: float) -> list[Point]:
    """Trains a model for some steps on the loss of a new batch each, and returns the curve of the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    curve: list[Point] = []
    model.train()
    for step in range(steps):
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % max(1, steps // POINTS) == 0:
            curve.append((step + 1, loss.item()))
    model.eval()
    return curve


def rate(step: int, steps: int) -> float:
    """Returns the share of the peak rate: it rises linearly, then falls as a cosine."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
