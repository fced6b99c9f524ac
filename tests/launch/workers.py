"""Processes that tests launch: `python -m workers WHAT`."""

import os
import signal
import sys
import threading
from datetime import timedelta

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from blip.distributed import (
    all_gather,
    all_gather_objects,
    all_gather_with_grad,
    all_reduce_mean,
    all_reduce_sum,
    init_distributed,
    rank,
    world,
)
from blip.training.loop import TrainingStopped, stop_signal_handler
from blip.training.watchdog import Watchdog


def one_is_killed() -> None:
    init_distributed(300)
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_the_others()


def exchange_then_one_is_stuck() -> None:
    init_distributed(60)
    exchange()
    _set_pg_timeout(timedelta(seconds=4))  # later than `start`: on a busy machine to connect takes longer
    print(f"rank {rank()} has exchanged", flush=True)  # noqa: T201
    with Watchdog(2) as watchdog:
        watchdog.feed("step 7")
        wait_for_the_others() if rank() == 0 else never_come_back()


def save_when_told() -> None:
    init_distributed(60)
    with stop_signal_handler() as told:
        print(f"rank {rank()} is ready", flush=True)  # noqa: T201
        while not all_reduce_sum(torch.tensor(float(told.is_set()))):
            told.wait(0.05)
        print(f"rank {rank()} saved", flush=True)  # noqa: T201
        raise TrainingStopped


def do_not_end() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    print(f"rank {os.environ['RANK']} is ready as process {os.getpid()}", flush=True)  # noqa: T201
    never_come_back()


def say_the_world() -> None:
    init_distributed(60)
    print(f"one of {world()}", flush=True)  # noqa: T201


def exchange() -> None:
    assert world() == 2
    own = torch.tensor([[1.0, 2.0]]) + 10 * rank()
    assert all_gather(own).tolist() == [[1, 2], [11, 12]]
    assert all_gather(torch.tensor([rank() == 0])).tolist() == [True, False]
    assert all_gather_objects(f"rank {rank()}") == ["rank 0", "rank 1"]
    assert all_reduce_mean(own).tolist() == [[6, 7]]
    assert all_reduce_sum(own).tolist() == [[12, 14]]
    row = own.clone().requires_grad_()
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ((rank() + 1) * weights * all_gather_with_grad(row)).sum().backward()
    assert row.grad is not None
    assert row.grad.tolist() == [
        (3 * weights[rank()]).tolist()
    ]  # once what rank 0 says of the row, twice of what rank 1 says


def wait_for_the_others() -> None:
    all_reduce_mean(torch.ones(()))


def never_come_back() -> None:
    threading.Event().wait(60)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
