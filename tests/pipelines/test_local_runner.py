import builtins
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import typer
from kfp import dsl
from looped_steps import looped_steps
from rich.console import Console
from small_disk import small_disk
from three_steps import three_steps
from typer.testing import CliRunner

from pipelines import __main__ as command
from pipelines import local, outcome, processes, run_lock, step_outputs, step_runner
from pipelines.bootstrap import bootstrap
from pipelines.parameters import ParameterError, steps


@pytest.fixture
def go(tmp_path: Path):
    """Runs the pipeline of three steps; returns its output, and the error if there was one."""

    def run(again: tuple[str, ...] = (), **arguments: str) -> tuple[str, str]:
        screen = io.StringIO()
        given = {"runs": str(tmp_path), **arguments}
        try:
            local.run_locally(three_steps, given, tmp_path / "root", Console(file=screen, soft_wrap=True), again)
        except step_runner.StepError as error:
            return screen.getvalue(), str(error)
        return screen.getvalue(), ""

    return run


def count(tmp_path: Path) -> dict[str, int]:
    return {
        name: len((tmp_path / name).read_text(encoding="utf-8"))
        for name in ("make", "work", "report")
        if (tmp_path / name).exists()
    }


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


def test_a_step_that_is_to_run_again_runs_with_what_takes_its_outputs_and_is_what_the_cache_knows_then(go, tmp_path):
    go()
    go(again=("double",))
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 2}
    seen, _ = go()
    assert seen.count("done before") == 3
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 2}
    newest = max((tmp_path / "root").glob("three-steps-*/double/worked"), key=lambda path: path.stat().st_mtime)
    newest.unlink()
    go()
    assert count(tmp_path) == {"make": 1, "work": 3, "report": 3}, "the newest is gone, and the older one is forgotten"


def test_another_revision_of_the_code_finds_what_was_done_and_says_whose_it_is(go, tmp_path, monkeypatch):
    monkeypatch.setenv("BLIP_REVISION", "one")
    go()
    assert go()[0].count("done before\n") == 3
    monkeypatch.setenv("BLIP_REVISION", "two")
    seen, _ = go()
    assert count(tmp_path) == {"make": 1, "work": 1, "report": 1}
    assert seen.count("done before by revision one\n") == 3


def test_another_argument_runs_what_depends_on_it(go, tmp_path):
    go()
    go(trouble="slow")
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 2}


def test_the_rounds_of_a_loop_are_of_one_run_and_write_to_one_mlflow(tmp_path):
    root = tmp_path / "root"

    def outputs(words: list[str]) -> dict:
        return local.run_locally(
            looped_steps, {"runs": str(tmp_path), "words": words}, root, Console(file=io.StringIO())
        )

    assert list(outputs(["a", "b"])) == ["note", "note 2", "gather"]
    assert (tmp_path / "gathered").read_text() == "aa bb"
    noted = [line.split(" ") for line in (tmp_path / "notes").read_text().splitlines()]
    assert [word for word, _, _ in noted] == ["a", "b"]
    (group,) = {group for _, group, _ in noted}
    assert group in [path.name for path in root.iterdir()]
    assert {uri for _, _, uri in noted} == {step_runner.mlflow_file(root)}
    with pytest.raises(step_runner.StepError, match="note failed: ValueError: this word is too long"):
        outputs(["a", "trouble", "c"])
    assert (tmp_path / "notes").read_text().split("\n")[2:] == [""]  # `a` came from the cache, `c` did not begin


def test_a_failure_names_the_step_the_reason_and_the_log_and_the_next_run_goes_on_from_there(go, tmp_path):
    (tmp_path / "trouble").write_text("raise", encoding="utf-8")
    seen, error = go()
    assert "[2/3] double" in seen
    assert "[3/3]" not in seen
    assert error.startswith("double failed: ValueError: the word a is too long;\nuse a shorter one\n")
    log = Path(re.search(r"its log: (.*)", error)[1])
    assert 'raise ValueError(f"the word' in log.read_text(encoding="utf-8")
    (tmp_path / "trouble").unlink()
    seen, error = go()
    assert error == ""
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 1}


def test_a_killed_step_says_by_what(go, tmp_path):
    (tmp_path / "trouble").write_text("kill", encoding="utf-8")
    assert "double failed: ended by SIGKILL (the machine ran out of memory, most likely)" in go()[1]


def test_an_exit_code_without_an_exception_is_the_reason(go, tmp_path):
    (tmp_path / "trouble").write_text("exit", encoding="utf-8")
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
    with (
        run_lock.exclusive_run(tmp_path / "root", Console()),
        pytest.raises(run_lock.RootError, match=r"another run is at work in .*: wait for it"),
    ):
        go()
    assert go()[1] == ""


SCRIPT = """
import os, sys; from pathlib import Path
from pipelines import __main__ as command; from looped_steps import looped_steps; from three_steps import three_steps
command.find_pipeline = lambda name: looped_steps if name == 'looped-steps' else three_steps
command.print_summary = lambda _: None
root, runs = sys.argv[1] + '/root', 'runs=' + sys.argv[1]
name = os.environ.get('PIPELINE', 'three-steps')
sys.argv = ['pipelines', 'run', name, '--root', root, '--set', runs, *sys.argv[2:]]
command.main()
"""


@pytest.fixture
def start(tmp_path):
    """Starts the command in its own process, which is killed at the end of the test."""
    started = []

    def run(*words: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), *words]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        child = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def pids(tmp_path: Path) -> list[int]:
    """Waits for a step that hangs, and returns its process ids."""
    return eventually(lambda: [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()] or None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_told_to_end_lets_its_step_save_and_says_how_to_go_on(start, tmp_path, number, code):
    run = start("--set", "trouble=save")
    there = pids(tmp_path)
    run.send_signal(number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == code, said
    assert (tmp_path / "saved").read_text(encoding="utf-8") == "all of it"
    assert not any(is_alive(pid) for pid in there)
    assert "stopping double, which saves its state" in said
    assert "stopped; nothing is left running\nthe same command goes on from there" in said
    assert "Traceback" not in said


def test_a_step_in_a_loop_ends_as_any_other_and_no_further_round_begins(start, tmp_path):
    run = start("--set", "words=[a,slow,c]", PIPELINE="looped-steps")
    (there,) = pids(tmp_path)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 130, said
    assert "stopping note, which saves its state" in said
    assert not is_alive(there)
    assert [line[0] for line in (tmp_path / "notes").read_text().splitlines()] == ["a"]


def test_a_second_ctrl_c_does_not_wait(start, tmp_path):
    run = start("--set", "trouble=stubborn")
    there = pids(tmp_path)
    run.send_signal(signal.SIGINT)
    eventually(lambda: (tmp_path / "refused").exists() or None)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert time.monotonic() - began < processes.STEP_GRACE_SECONDS / 2
    assert not any(is_alive(pid) for pid in there)


def test_the_step_of_a_killed_run_is_ended_by_the_next_one(start, tmp_path):
    run = start("--set", "trouble=save")
    there = pids(tmp_path)
    run.kill()
    run.wait()
    assert all(is_alive(pid) for pid in there)
    said, _ = start().communicate(timeout=60)
    assert "the step of a killed run is still running: it saves its state and ends" in said
    assert (tmp_path / "saved").read_text(encoding="utf-8") == "all of it"
    assert not any(is_alive(pid) for pid in there)
    assert "report.html" in said


def test_a_run_of_another_machine_is_left_alone(tmp_path, go):
    with run_lock.exclusive_run(tmp_path / "root", Console()) as lock:
        lock.file.seek(0)
        lock.file.truncate()
        json.dump({"host": "elsewhere", "run": "1 1", "step": None}, lock.file)
        lock.file.flush()
        with pytest.raises(run_lock.RootError, match="another run is at work"):
            go()


def test_a_folder_that_cannot_be_used_is_one_line(start, tmp_path):
    (tmp_path / "root").write_text("a file", encoding="utf-8")
    said, _ = start().communicate(timeout=60)
    assert said == f"--root {tmp_path}/root is a file: give a folder\n"


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_that_mlflow_cannot_name_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ParameterError, match=rf"^--root {re.escape(str(tmp_path / name))}: .* use another folder"):
        local.run_locally(three_steps, {"runs": str(tmp_path)}, tmp_path / name, Console())
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("root", ["/proc/none", "/dev/null/none"])
def test_a_place_that_takes_nothing_is_one_line(tmp_path, root):
    with pytest.raises(
        run_lock.RootError, match=rf"{root}: .*; make {root} a folder .* has room, or give another --root"
    ) as error:
        local.run_locally(three_steps, {"runs": str(tmp_path)}, Path(root), Console())
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line(tmp_path):
    """Limits the size of files to a few bytes, as a full disk does."""
    limited = SCRIPT.replace(
        "import os, sys;", "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);", 1
    )
    limited = limited.replace("command.main()", "resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8)); command.main()")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "has room" in done.stderr


def test_a_report_that_does_not_fit_leaves_the_former_one(tmp_path: Path):
    made = tmp_path / "run-1" / "report"
    made.mkdir(parents=True)
    report: step_outputs.Outputs = {
        "report_page": dsl.HTML(uri=str(made / "page.html")),
        "metrics": dsl.Metrics(uri=str(made / "metrics.json")),
    }
    (made / "metrics.json").write_text("{}", encoding="utf-8")
    (made / "page.html").write_text("former", encoding="utf-8")
    (tmp_path / "store" / "made" / "files" / "output").mkdir(parents=True)
    (tmp_path / "store" / "made" / "files" / "output" / "config.json").write_text("{}")
    model = str(tmp_path / "store" / "made")
    assert outcome.publish(report, tmp_path, model=model) == tmp_path / "latest"
    assert (tmp_path / "latest" / "model" / "config.json").is_file()
    (made / "page.html").write_bytes(bytes(8192))
    with small_disk(4096), pytest.raises(run_lock.RootError, match=f"make {tmp_path} a folder .* has room") as full:
        outcome.publish(report, tmp_path)
    assert "\n" not in str(full.value)
    assert (tmp_path / "latest" / "report.html").read_text(encoding="utf-8") == "former"
    outcome.publish(report, tmp_path)
    assert (tmp_path / "latest" / "report.html").read_bytes() == bytes(8192)


@pytest.mark.parametrize("home", ["", "/nowhere", "/dev/null"])
def test_a_home_is_not_needed(start, tmp_path, home):
    run = start(HOME=home)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert count(tmp_path) == {"make": 1, "work": 1, "report": 1}


def eventually(answer, seconds: float = 60):
    """Returns the first result of `answer` that is true."""
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
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_wrong_setting_ends_with_the_code_for_mistakes(start, tmp_path):
    run = start("--set", "trouble=mistake")
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 42, said
    assert "double failed: ConfigError: epochs must be more than 0" in said
    assert "correct the setting; what was done stays done" in said
    assert count(tmp_path) == {"make": 1, "work": 1}


def test_the_alarms_of_a_step_are_those_of_its_page():
    page = dsl.HTML(uri="page", metadata={"alarms": ["itm at prior at step 40"]})
    assert step_outputs.alarms({"training_page": page, "Output": "s3://b/made/pretrain/1"}) == [
        "itm at prior at step 40"
    ]
    assert step_outputs.alarms({"training_page": dsl.HTML(uri="page")}) == step_outputs.alarms({"Output": 3}) == []


def test_the_image_of_a_cluster_is_not_what_the_cache_of_a_machine_compares():
    for executor in local.in_order(bootstrap.pipeline_spec, steps(bootstrap)).deployment_spec["executors"].values():
        assert executor["container"]["image"] == local.LOCAL_IMAGE
        assert [entry["name"] for entry in executor["container"]["env"]] == ["MLFLOW_RUN_NAME"]


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
        (
            "[rank0]: Traceback (most recent call last):\n[rank0]:   File ...\n[rank0]: NameError: world\n",
            1,
            "NameError: world",
        ),
        (f"{TRACEBACK}ValueError: long ago, and caught\n", -signal.SIGTERM, "ended by SIGTERM"),
        ("", 137, "ended by SIGKILL (the machine ran out of memory, most likely)"),
        ("noise", 3, "exit code 3"),
    ],
)
def test_reason(log, code, expected):
    assert step_runner.failure_reason(log, code) == expected


def test_a_step_finds_the_components_of_the_checkout_from_any_folder(go, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    assert go(trouble="find")[1] == ""
    assert (tmp_path / "found").read_text(encoding="utf-8") == str(Path(__file__).parents[2] / "components")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (41.3, "41 s"), (59.9, "1 min 00 s"), (125, "2 min 05 s"), (4320, "1 h 12 min")],
)
def test_duration(seconds, expected):
    assert step_runner.format_duration(seconds) == expected


def test_the_command_says_what_failed_and_ends_with_1_then_goes_on_and_points_to_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_pipeline", lambda _: three_steps)
    monkeypatch.setattr(
        command, "print_summary", lambda latest: typer.echo((latest / "summary.json").read_text(encoding="utf-8"))
    )
    run = ["run", "three_steps", "--set", f"runs={tmp_path}", "--set", "word=hey", "--root", str(tmp_path / "root")]
    (tmp_path / "trouble").write_text("raise", encoding="utf-8")
    failed = CliRunner().invoke(command.app, run)
    assert failed.exit_code == 1
    assert "✗ double failed: ValueError: the word hey is too long;" in failed.output
    assert "the same command goes on from there" in failed.output
    (tmp_path / "trouble").unlink()
    for _ in range(2):
        done = CliRunner().invoke(command.app, run)
        assert done.exit_code == 0, done.output
        assert "heyhey" in done.output
        assert (tmp_path / "root" / "latest" / "report.html").read_text(encoding="utf-8") == "heyhey"
    assert count(tmp_path) == {"make": 1, "work": 2, "report": 1}
