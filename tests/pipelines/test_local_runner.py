import builtins
import io
import logging
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console
from three_steps import three_steps
from typer.testing import CliRunner

from pipelines import __main__ as command
from pipelines import local


@pytest.fixture
def go(tmp_path: Path):
    """Runs the pipeline of three steps; returns what a person saw, and the error if there was one."""

    def run(**arguments: str) -> tuple[str, str]:
        screen = io.StringIO()
        try:
            local.run(three_steps, {"runs": str(tmp_path), **arguments}, tmp_path / "root", Console(file=screen, soft_wrap=True))
        except local.StepError as error:
            return screen.getvalue(), str(error)
        return screen.getvalue(), ""

    return run


def count(tmp_path: Path) -> dict[str, int]:
    return {name: len((tmp_path / name).read_text()) for name in ("make", "work", "report") if (tmp_path / name).exists()}


def test_steps_are_announced_in_the_order_of_the_docstring_and_nothing_else_is_said(go, capfd):
    seen, error = go()
    assert error == ""
    assert [line for line in seen.splitlines() if not line.startswith(("✓", "working 20/20"))] == [
        "[1/3] prepare — write a word",
        "[2/3] double — write it twice",
        "[3/3] report — show it",
    ]
    assert "working 20/20 images 100%" in seen
    assert capfd.readouterr() == ("", "")


def test_a_finished_run_comes_from_the_cache(go, tmp_path):
    go()
    seen, _ = go()
    assert count(tmp_path) == {"make": 1, "work": 1, "report": 1}
    assert seen.count("done before") == 3


def test_another_argument_runs_what_depends_on_it(go, tmp_path):
    go()
    go(trouble="slow")
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 2}


def test_a_failure_names_the_step_the_reason_and_the_log_and_the_next_run_goes_on_from_there(go, tmp_path):
    (tmp_path / "trouble").write_text("raise")
    seen, error = go()
    assert "[2/3] double" in seen
    assert "[3/3]" not in seen
    assert error.startswith("double failed: ValueError: the word a is too long;\nuse a shorter one\n")
    log = Path(re.search(r"its log: (.*)", error)[1])
    assert 'raise ValueError(f"the word' in log.read_text()
    (tmp_path / "trouble").unlink()
    seen, error = go()
    assert error == ""
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 1}


def test_a_killed_step_says_by_what(go, tmp_path):
    (tmp_path / "trouble").write_text("kill")
    assert "double failed: ended by SIGKILL (the machine ran out of memory, most likely)" in go()[1]


def test_an_exit_code_without_an_exception_is_the_reason(go, tmp_path):
    (tmp_path / "trouble").write_text("exit")
    assert "double failed: exit code 42" in go()[1]


def test_a_run_leaves_the_process_and_the_temporary_folder_as_they_were(go, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = builtins.print, logging.getLogger().handlers[:], sys.stdout
    go()
    assert (builtins.print, logging.getLogger().handlers[:], sys.stdout) == before
    assert list(scratch.iterdir()) == []


def test_two_runs_do_not_share_a_folder(go, tmp_path):
    with local.alone(tmp_path / "root"):
        assert "another run" in go()[1]
    assert go()[1] == ""


def test_ctrl_c_ends_the_step_and_its_children(tmp_path):
    script = (
        "import sys; from pathlib import Path; from rich.console import Console; from pipelines import local;"
        "from three_steps import three_steps;"
        "local.run(three_steps, {'runs': sys.argv[1], 'trouble': 'hang'}, Path(sys.argv[1], 'root'), Console())"
    )
    run = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    try:
        pids = eventually(lambda: [int(pid) for pid in (tmp_path / "pids").read_text().split()] or None)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) != 0
    finally:
        run.kill()
    assert eventually(lambda: not any(is_alive(pid) for pid in pids) or None)


def eventually(answer, seconds: float = 60):
    """What `answer` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if (found := answer()) is not None:
                return found
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise TimeoutError


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


TRACEBACK = "Traceback (most recent call last):\n  File ...\n"


@pytest.mark.parametrize(
    ("log", "code", "expected"),
    [
        (f"noise\n{TRACEBACK}ValueError: no\n", 1, "ValueError: no"),
        (
            f"{TRACEBACK}KeyError: 1\n\nDuring handling ...\n\n{TRACEBACK}blip.config.ConfigError: two\nlines\n",
            1,
            "ConfigError: two\nlines",
        ),
        ("[rank0]: Traceback (most recent call last):\n[rank0]:   File ...\n[rank0]: NameError: world\n", 1, "NameError: world"),
        (f"{TRACEBACK}ValueError: long ago, and caught\n", -signal.SIGTERM, "ended by SIGTERM"),
        ("", 137, "ended by SIGKILL (the machine ran out of memory, most likely)"),
        ("noise", 3, "exit code 3"),
    ],
)
def test_reason(log, code, expected):
    assert local.reason(log, code) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.04, "0.0 s"), (41.3, "41 s"), (59.9, "1 min 00 s"), (125, "2 min 05 s"), (4320, "1 h 12 min")]
)
def test_duration(seconds, expected):
    assert local.duration(seconds) == expected


def test_the_command_says_what_failed_and_ends_with_1_then_goes_on_and_points_to_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find", lambda _: three_steps)
    monkeypatch.setattr(command, "show", lambda latest: typer.echo((latest / "summary.json").read_text()))
    run = ["run", "three_steps", "--set", f"runs={tmp_path}", "--set", "word=hey", "--root", str(tmp_path / "root")]
    (tmp_path / "trouble").write_text("raise")
    failed = CliRunner().invoke(command.app, run)
    assert failed.exit_code == 1
    assert "✗ double failed: ValueError: the word hey is too long;" in failed.output
    assert "the same command goes on from there" in failed.output
    (tmp_path / "trouble").unlink()
    for _ in range(2):
        done = CliRunner().invoke(command.app, run)
        assert done.exit_code == 0, done.output
        assert "heyhey" in done.output
        assert (tmp_path / "root" / "latest" / "report.html").read_text() == "heyhey"
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 1}
