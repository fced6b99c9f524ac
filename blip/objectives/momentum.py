"""The momentum model: an exponential moving average (EMA) of the trained model (ALBEF, section 3.2)."""

import copy
from collections.abc import Mapping

import torch
from torch import nn


def momentum_copy(model: nn.Module) -> nn.Module:
    """Returns a frozen copy in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(teacher: nn.ModuleDict, student: Mapping[str, nn.Module], momentum: float) -> None:
    """Sets the teacher's parameters to `m teacher + (1 - m) student`, in place; parts are matched by name."""
    slow, fast = [], []
    for name, part in teacher.items():
        own = dict(student[name].named_parameters())
        for path, parameter in part.named_parameters():
            slow.append(parameter)
            fast.append(own[path])
    torch._foreach_lerp_(slow, fast, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
