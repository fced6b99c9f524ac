"""Collectives over the training processes; with one process they return their input."""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def init_distributed(timeout: float = 1800.0) -> None:
    """Joins the processes that the launcher started, or forms a group of one; joining again does nothing.

    A collective that waits for longer than `timeout` seconds raises RuntimeError.
    """
    if dist.is_initialized():
        return
    backend, limit = ("nccl" if torch.cuda.is_available() else "gloo"), timedelta(seconds=timeout)
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=limit)
    else:
        dist.init_process_group(backend, timeout=limit, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]


def shutdown_distributed() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device() -> torch.device:
    """Returns the device of this process."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def local_rank() -> int:
    """Returns the rank of this process on its machine, from 0; ranks of one machine are consecutive."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Returns whether this is rank 0, which writes and reports."""
    return rank() == 0


@torch.no_grad()
def all_gather(tensor: Tensor) -> Tensor:
    """Rows `(B, ...)` of all ranks in the order of ranks, `(world B, ...)`, without gradient; every rank brings the
    same shape.
    """
    if world() == 1:
        return tensor.detach()
    own = tensor.detach().contiguous()
    sent = own.view(torch.uint8) if own.dtype == torch.bool else own
    parts = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(parts, sent)
    return torch.cat(parts).view(own.dtype)


class GatherRows(torch.autograd.Function):
    """Gathers rows in forward; in backward a rank receives the sum over ranks of its own rows' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world())[rank()]


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """As `gather`, with gradient: a row's gradient is the sum over all ranks, so a mean of losses over ranks has its
    true gradient.
    """
    return tensor if world() == 1 else GatherRows.apply(tensor)


def all_gather_objects(value: T) -> list[T]:
    """Returns one picklable value per rank, in the order of ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum over ranks, a new tensor without gradient."""
    result = tensor.detach().clone()
    if world() > 1:
        dist.all_reduce(result)
    return result


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Returns the mean over ranks of a floating-point tensor, a new tensor without gradient."""
    return all_reduce_sum(tensor) / world()


def barrier() -> None:
    """Waits for all ranks."""
    if world() > 1:
        dist.barrier()
