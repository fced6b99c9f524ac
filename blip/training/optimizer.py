"""Which parameters learn how fast: groups for AdamW, and learning rates by step."""

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
    """Weight decay on matrices and embeddings only, or as in the reference also on biases, norms and the
    temperature.
    """
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters; none leaves it as it is."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Rate of a layer of the decayed tower relative to the next one above it."""
    layer_decay_of: str = "visual_encoder"
    """The tower whose layers learn the slower the lower they stand, as a part of the parameters' names."""


class ScheduleConfig(Config):
    kind: Literal["cosine", "exponential", "constant"] = "cosine"
    by: Literal["step", "epoch"] = "step"
    """Rates follow every step, or as in the reference stay for an epoch."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    warmup_from: float = Field(default=1e-6, ge=0)
    """Learning rate of the first step of the warmup."""
    floor: float = Field(default=0.0, ge=0)
    """Learning rate below which none falls."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """Factor of each epoch, of the exponential schedule."""


LAYER = re.compile(r"\.(?:blocks|layers?)\.(\d+)\.")
"""What stands in the name of a layer's parameter, after its tower's."""


def fit_warmup(cfg: ScheduleConfig, steps: int) -> ScheduleConfig:
    """Returns the schedule of a run of so many steps: a warmup that outlasts it, which would train at next to nothing,
    takes half of it.
    """
    if cfg.warmup_steps < steps:
        return cfg
    log.warning(
        "schedule.warmup_steps is %d, but the run has %d steps: it warms up over %d; set fewer, or raise epochs",
        cfg.warmup_steps,
        steps,
        steps // 2,
    )
    return cfg.model_copy(update={"warmup_steps": steps // 2})


def learning_rate(cfg: ScheduleConfig, peak: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step`, from 0, of `steps`.

    After a linear warmup the cosine goes from peak to floor over the rest, the exponential falls by a factor each epoch
    since step 0.
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
    """Groups of trainable parameters that share a weight decay and a share of the learning rate, their `scale`.

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
    """Whether two of its dimensions are larger than 1; biases, norms, the temperature and single tokens are vectors."""
    return sum(size > 1 for size in parameter.shape) > 1


def layer_scales(names: list[str], cfg: OptimizerConfig) -> dict[str, float]:
    """Each parameter's share of the learning rate: `d^(L + 1 - l)` in layer `l` of the tower's `L`, counted from 1.

    What the tower defines before its first layer counts as layer 0; what it defines after the last has the full rate.
    """
    scales = dict.fromkeys(names, 1.0)
    tower = [name for name in names if f".{cfg.layer_decay_of}." in f".{name}"]
    layers = [layer_of(name) for name in tower]
    if cfg.layer_decay < 1 and not any(n is not None for n in layers):
        towers = sorted({LAYER.split(name)[0].rpartition(".")[2] for name in names if layer_of(name) is not None})
        raise ConfigError(
            f"optimizer.layer_decay_of is {cfg.layer_decay_of!r}, which is no tower of this model; it has "
            f"{', '.join(towers)}"
        )
    depth = max((n for n in layers if n is not None), default=-1) + 1
    first = next((i for i, n in enumerate(layers) if n is not None), 0)
    for i, (name, layer) in enumerate(zip(tower, layers, strict=True)):
        if layer is not None or i < first:
            scales[name] = cfg.layer_decay ** (depth - (-1 if layer is None else layer))
    return scales


def layer_of(name: str) -> int | None:
    """Returns the layer index, from 0, in a parameter's name; None if there is none."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def build_optimizer(module: nn.Module, cfg: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the module's groups, in one fused kernel."""
    return torch.optim.AdamW(parameter_groups(module, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def set_learning_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Sets each group's learning rate, `rate` times its `scale`."""
    for group in groups:
        group["lr"] = rate * group["scale"]
