"""Space in /dev/shm, through which loader workers pass batches; without a check, a full one blocks the training
forever."""

import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from torch import Tensor

from blip.config import ConfigError

SHM = Path("/dev/shm")
SHM_REMEDY = (
    "set loader.workers=0, lower loader.prefetch or loader.micro_batch, or make it larger "
    "(docker run --shm-size, an emptyDir in memory)"
)


def check_shared_memory(batch: Any, batches: int) -> None:
    """Raises ConfigError if /dev/shm is too small for this number of batches of this size."""
    needed = tensor_bytes(batch) * batches
    free = free_bytes()
    if needed > free:
        raise ConfigError(
            f"loader.workers pass batches through {SHM}, which has {format_megabytes(free)} free of "
            f"{format_megabytes(size_bytes())}, but {batches} batches at a time take {format_megabytes(needed)}: "
            f"{SHM_REMEDY}"
        )


def tensor_bytes(value: Any) -> int:
    """Returns the bytes of all tensors in a batch."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if is_dataclass(value):
        return tensor_bytes(vars(value))
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def free_bytes() -> int:
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def size_bytes() -> int:
    status = os.statvfs(SHM)
    return status.f_blocks * status.f_frsize


def format_megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def exit_on_send_error() -> None:
    """Ends this process if a batch cannot be sent: by default the error is only printed, and the receiver waits
    forever."""

    def end(error: Exception, _: object) -> None:
        os.write(2, f"a loader worker cannot send a batch: {error}\n".encode())
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # pyright: ignore[reportAttributeAccessIssue]
