"""AdamW parameter groups with layer-wise learning rate decay, and learning rate schedules."""

import logging
import math
import re
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from blip.config import Config, ConfigError

log = logging.getLogger(__name__)


class OptimizerConfig(Config):
    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    decay_scope: Literal["matrices", "all"] = "matrices"
    """Apply weight decay to matrices and embeddings, or, as in the reference, also to biases, norms and temperature."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Maximum norm of the gradient over all parameters; None disables clipping."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Ratio of the learning rate of a layer to that of the layer above it, in the tower `layer_decay_of`."""
    layer_decay_of: str = "visual_encoder"
    """Tower with layer-wise learning rate decay, as a component of its parameters' names."""


class ScheduleConfig(Config):
    kind: Literal["cosine", "exponential", "constant"] = "cosine"
    by: Literal["step", "epoch"] = "step"
    """Update the learning rate every step, or, as in the reference, every epoch."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    warmup_from: float = Field(default=1e-6, ge=0)
    """Learning rate of the first warmup step."""
    floor: float = Field(default=0.0, ge=0)
    """Minimum learning rate."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """Factor per epoch of the exponential schedule."""


LAYER = re.compile(r"\.(?:blocks|layers?)\.(\d+)\.")
"""Matches the layer index in a parameter's name."""


def fit_warmup(cfg: ScheduleConfig, steps: int) -> ScheduleConfig:
    """Returns the schedule with a warmup that fits a run of `steps` steps.

    A warmup as long as the run or longer is shortened to half the run, with a warning: the run would otherwise train at
    a very small learning rate.
    """
    if cfg.warmup_steps < steps:
        return cfg
    log.warning(
        "schedule.warmup_steps is %d, but the run has %d steps: the warmup takes %d; lower it, or raise epochs",
        cfg.warmup_steps,
        steps,
        steps // 2,
    )
    return cfg.model_copy(update={"warmup_steps": steps // 2})


def learning_rate(cfg: ScheduleConfig, peak: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of optimizer step `step`, counted from 0, of `steps`.

    After a linear warmup, the cosine schedule decays from peak to floor over the remaining steps; the exponential
    schedule decays by a factor per epoch since step 0.
    """
    if step < cfg.warmup_steps:
        target = learning_rate(cfg, peak, cfg.warmup_steps, steps, steps_per_epoch)
        start = min(cfg.warmup_from, target)
        return start + (target - start) * step / cfg.warmup_steps
    floor = min(cfg.floor, peak)
    match cfg.kind:
        case "cosine":
            now = step if cfg.by == "step" else step // steps_per_epoch * steps_per_epoch
            passed = max(0, now - cfg.warmup_steps) / max(1, steps - cfg.warmup_steps)
            return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, passed))) / 2
        case "exponential":
            epochs = step / steps_per_epoch if cfg.by == "step" else step // steps_per_epoch
            return max(floor, peak * cfg.decay**epochs)
        case "constant":
            return peak


def parameter_groups(module: nn.Module, cfg: OptimizerConfig) -> list[dict[str, Any]]:
    """Returns groups of trainable parameters with equal weight decay and equal learning rate scale, `scale`.

    A tied parameter counts once, under its first name.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    scales = layer_scales(list(trainable), cfg)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        decay = cfg.weight_decay if cfg.decay_scope == "all" or is_matrix(parameter) else 0.0
        new = {"params": [], "lr": cfg.lr * scales[name], "weight_decay": decay, "scale": scales[name]}
        groups.setdefault((decay, scales[name]), new)["params"].append(parameter)
    return list(groups.values())


def is_matrix(parameter: nn.Parameter) -> bool:
    """Returns whether two or more dimensions exceed 1; biases, norms, the temperature and single tokens are vectors."""
    return sum(size > 1 for size in parameter.shape) > 1


def layer_scales(names: list[str], cfg: OptimizerConfig) -> dict[str, float]:
    """Returns the learning rate scale of each parameter by name.

    It is `d^(L + 1 - l)` in layer `l`, from 1, of the tower's `L` layers. Parameters that the tower defines before its
    first layer count as layer 0; those after its last layer have scale 1. Raises ConfigError if the tower does not
    exist.
    """
    scales = dict.fromkeys(names, 1.0)
    tower = [name for name in names if f".{cfg.layer_decay_of}." in f".{name}"]
    layers = [layer_of(name) for name in tower]
    if cfg.layer_decay < 1 and not any(n is not None for n in layers):
        towers = sorted({LAYER.split(name)[0].rpartition(".")[2] for name in names if layer_of(name) is not None})
        raise ConfigError(
            f"optimizer.layer_decay_of is {cfg.layer_decay_of!r}, which is not a tower of this model; choices: "
            f"{', '.join(towers)}"
        )
    depth = max((n for n in layers if n is not None), default=-1) + 1
    first = next((i for i, n in enumerate(layers) if n is not None), 0)
    for i, (name, layer) in enumerate(zip(tower, layers, strict=True)):
        if layer is not None or i < first:
            scales[name] = cfg.layer_decay ** (depth - (-1 if layer is None else layer))
    return scales


def layer_of(name: str) -> int | None:
    """Returns the layer index, from 0, in a parameter's name, or None if there is none."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def build_optimizer(module: nn.Module, cfg: OptimizerConfig) -> torch.optim.AdamW:
    """Returns a fused AdamW over the module's parameter groups."""
    return torch.optim.AdamW(parameter_groups(module, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def set_learning_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Sets the learning rate of each group to `rate` times its `scale`."""
    for group in groups:
        group["lr"] = rate * group["scale"]
