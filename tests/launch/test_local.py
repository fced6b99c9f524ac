import os
import signal
import threading
import time
from pathlib import Path

import pytest

from blip.launch.local import exit_code, launch, torchrun


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets launched processes find the modules beside this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def exit_of(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        torchrun(["--standalone", "--nproc-per-node=2", "-m", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_wrong_configuration_keeps_its_exit_code():
    assert exit_of("bad_config") == 42


def test_a_killed_rank_ends_the_others_and_is_told_from_a_failure(tmp_path: Path):
    began = time.monotonic()
    assert launch("workers", ["one_is_killed"], 2, log=tmp_path / "log") == 128 + 9
    assert time.monotonic() - began < 200, "the other rank waited for its collective to time out"


def test_a_collective_that_one_rank_does_not_join_ends_with_a_stack_of_every_rank(capfd: pytest.CaptureFixture[str]):
    assert exit_of("workers", "exchange_then_one_is_stuck") == 1
    out, err = capfd.readouterr()
    assert out.count("has exchanged") == 2, err
    for rank, place in enumerate(["in wait_for_the_others", "in never_come_back"]):
        _, header, stacks = err.partition(f"rank {rank} has been in step 7 for 2 s:")
        assert header
        assert place in stacks


def tell_when_ready(log: Path, *signals: signal.Signals) -> None:
    """Sends signals to this process, a while apart, once both ranks are ready."""

    def tell() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and log.read_text().count("is ready") < 2:
            time.sleep(0.1)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(1.2)

    log.touch()
    threading.Thread(target=tell).start()


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_let_every_rank_save(tmp_path: Path, told: signal.Signals, code: int):
    log = tmp_path / "log"
    tell_when_ready(log, told)
    assert launch("workers", ["save_when_told"], 2, log=log) == code
    assert log.read_text().count("saved") == 2


def test_a_second_ctrl_c_ends_ranks_that_do_not_end_and_leaves_none_behind(tmp_path: Path):
    log = tmp_path / "log"
    tell_when_ready(log, signal.SIGINT, signal.SIGINT)
    began = time.monotonic()
    assert launch("workers", ["do_not_end"], 2, log=log) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 60
    for pid in (int(line.split()[-1]) for line in log.read_text().splitlines() if "is ready" in line):
        while is_alive(pid):
            assert time.monotonic() - began < 60
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a killed one may be a zombie until its parent waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_number_of_processes_is_one_a_gpu(tmp_path: Path):
    log = tmp_path / "log"
    assert launch("workers", ["say_the_world"], 0, log=log) == 0
    assert log.read_text().count("one of 1") == 1


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([1, 42], 42), ([1, -9], 137), ([-15, -15], 143), ([143, 143], 143), ([3, 1], 3), ([-15, 1], 1)],
)
def test_one_exit_code_stands_for_all(codes: list[int], expected: int):
    assert exit_code(codes) == expected
