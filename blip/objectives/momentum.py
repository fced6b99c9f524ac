"""The momentum teacher: a slow copy of the student (ALBEF, section 3.2)."""

import copy
from collections.abc import Mapping

import torch
from torch import nn


def momentum_copy(student: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(teacher: nn.ModuleDict, student: Mapping[str, nn.Module], momentum: float) -> None:
    """Moves each of the teacher's parts towards the student's part of that name: `m teacher + (1 - m) student`, in place."""
    slow, fast = [], []
    for name, part in teacher.items():
        own = dict(student[name].named_parameters())
        for path, parameter in part.named_parameters():
            slow.append(parameter)
            fast.append(own[path])
    torch._foreach_lerp_(slow, fast, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
