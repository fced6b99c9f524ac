"""A run that is killed, resized or both resumes exactly."""

import json
import multiprocessing
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_toy import main

STEPS, KILLED, RESUMED = 5, 3, 2
"""Checkpoints are written every 2 steps: a run killed after step 3 resumes from step 2."""
STAGES = {1: (0, 1, 2), 2: (0, 1, 2, 3)}
"""The ZeRO stages that are tried on so many processes."""


def train(processes: int, jobs: list[dict[str, Any]], log: Path) -> set[int | None]:
    """Returns the exit codes of processes forked from one with all imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_toy", "blip.training.zero"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=main, args=(rank, processes, port, jobs, str(log))) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {worker.exitcode for worker in workers}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: `straight` and `killed` for each number of processes and ZeRO stage, and `elastic` over 1, 2, 4
    and 1.
    """
    root = tmp_path_factory.mktemp("runs")

    def elastic(processes: int, until: int | None) -> dict[str, Any]:
        return {"folder": str(root / "elastic"), "steps": 8, "accumulation": 4 // processes, "until": until}

    def job(kind: str, processes: int, zero: int, **options: Any) -> dict[str, Any]:
        return {
            "folder": str(root / f"{kind}-{processes}-{zero}"),
            "steps": STEPS,
            "accumulation": 2,
            "zero": zero,
            **options,
        }

    for processes in (1, 2):
        jobs = [elastic(processes, until=2 * processes)]
        jobs += [job("straight", processes, zero) for zero in STAGES[processes]]
        jobs += [
            job("killed", processes, zero, until=KILLED, kill=zero == STAGES[processes][-1])
            for zero in STAGES[processes]
        ]
        assert train(processes, jobs, root / "log") == {-signal.SIGKILL}, (root / "log").read_text()
    assert train(4, [elastic(4, until=6)], root / "log") == {0}, (root / "log").read_text()
    straight = {"folder": str(root / "elastic-straight"), "steps": 8, "accumulation": 4}
    for processes in (1, 2):
        jobs = [job("killed", processes, zero) for zero in STAGES[processes]]
        jobs += [elastic(1, until=None), straight] if processes == 1 else []
        assert train(processes, jobs, root / "log") == {0}, (root / "log").read_text()
    return root


def last_state(folder: Path) -> dict[str, Tensor]:
    newest = json.loads(max(folder.glob("step-*.json")).read_text())
    return {
        name: tensor for part in newest["parts"].values() for name, tensor in load_file(folder / part["key"]).items()
    }


def losses(folder: Path, first: int, processes: int) -> list[dict[str, float]]:
    return json.loads((folder / f"losses-{first}-on-{processes}").read_text())


@pytest.mark.parametrize(
    ("processes", "zero"), [(processes, zero) for processes, stages in STAGES.items() for zero in stages]
)
def test_killed_and_resumed_equals_straight_tensor_for_tensor(runs: Path, processes: int, zero: int):
    straight, killed = runs / f"straight-{processes}-{zero}", runs / f"killed-{processes}-{zero}"
    assert losses(killed, RESUMED, processes) == losses(straight, 0, processes)[RESUMED:]
    expected, found = last_state(straight), last_state(killed)
    assert found.keys() == expected.keys()
    assert {
        "model/queue.image",
        "model/queue.pointer",
        "model/teacher.word.weight",
        "model/temperature",
    } <= expected.keys()
    assert {"model/frozen.weight", "exp_avg/student.norm.bias", "exp_avg_sq/student.word.weight"} <= expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_one_run_goes_on_over_one_two_four_and_one_process(runs: Path):
    straight = losses(runs / "elastic-straight", 0, 1)
    resized = [
        step
        for first, processes in ((0, 1), (2, 2), (4, 4), (6, 1))
        for step in losses(runs / "elastic", first, processes)
    ]
    assert len(resized) == len(straight) == 8
    for expected, found in zip(straight, resized, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    expected, found = last_state(runs / "elastic-straight"), last_state(runs / "elastic")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_learnt_does_not_depend_on_the_stage(runs: Path):
    for processes in (1, 2):
        expected, *others = [losses(runs / f"straight-{processes}-{zero}", 0, processes) for zero in (0, 1, 2)]
        for found in others:
            assert [step["lm"] for step in found] == pytest.approx([step["lm"] for step in expected], rel=1e-5)
