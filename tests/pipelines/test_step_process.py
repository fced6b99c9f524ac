import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import step_process
from pipelines.processes import end_process, running_processes
from pipelines.step_process import StepStarter, modules_of

ROOT = Path(__file__).parents[2]


def command(body: str) -> list[str]:
    """The command line that kfp makes for a component without inputs."""
    source = "\nfrom kfp.dsl import *\n\ndef step():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    given = '{"inputs": {}, "outputs": {"outputFile": "/dev/null"}}'
    return ["sh", "-ec", "python3 -m kfp", source, "--executor_input", given, "--function_to_execute", "step"]


@pytest.fixture
def starter(tmp_path: Path):
    (tmp_path / "counted.py").write_text(
        "import os, pathlib\nwith open(pathlib.Path(__file__).parent / 'imports', 'a') as file:\n    file.write('x')\n"
        "maker = os.getpid()\nprint('imported')\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTHONUNBUFFERED": "1"}
    with StepStarter(environment, []) as found:
        yield found


def test_what_steps_import_is_imported_once_and_each_has_its_own_process_environment_and_log(starter, tmp_path):
    body = """from counted import maker
import os, sys
print(os.getpid(), os.getppid() == maker, os.getpgrp() == os.getpid(), os.environ["WORD"], "HOME" in os.environ)
os.environ["WORD"] = "changed"
"""
    logs = []
    for word in ("one", "two"):
        log = tmp_path / f"{word}.log"
        child = starter.start(command(body), {"WORD": word, "PATH": os.environ["PATH"]}, log)
        assert child.wait() == 0
        assert child.poll() == 0
        logs.append(log.read_text())
        (said,) = [line for line in logs[-1].splitlines() if line.startswith(str(child.pid))]
        assert said.split()[1:] == ["True", "True", word, "False"]
    assert (tmp_path / "imports").read_text() == "x"
    assert ["imported" in log for log in logs] == [True, False]
    assert "KFP Executor" in logs[1]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise SystemExit(42)", 42),
        ("raise ValueError('the reason')", 1),
        ("import os\nos.kill(os.getpid(), 9)", -9),
        ("from nowhere_to_be_found import x", 1),
    ],
)
def test_how_a_step_ends(starter, tmp_path, body, code):
    assert starter.start(command(body), dict(os.environ), tmp_path / "log").wait() == code
    said = (tmp_path / "log").read_text()
    assert ("Traceback" in said) == (code == 1)
    assert starter.start(command("pass"), dict(os.environ), tmp_path / "log").wait() == 0  # the next one starts


def test_the_end_of_a_step_is_that_of_a_program(starter, tmp_path):
    body = f"import atexit, pathlib\natexit.register(lambda: pathlib.Path({str(tmp_path / 'end')!r}).touch())"
    assert starter.start(command(body), dict(os.environ), tmp_path / "log").wait() == 0
    assert (tmp_path / "end").exists()


def test_a_step_is_ended_with_the_processes_that_it_started(starter, tmp_path):
    body = "import subprocess, time\nsubprocess.Popen(['sleep', '100'])\ntime.sleep(100)"
    child = starter.start(command(body), dict(os.environ), tmp_path / "log")
    while len(running_processes(child.pid)) < 2:
        time.sleep(0.02)
    end_process(child)
    assert child.poll() == -signal.SIGTERM
    assert running_processes(child.pid) == []


def test_a_killed_starter_is_a_killed_step_and_the_next_step_has_another(starter, tmp_path):
    child = starter.start(command("import time\ntime.sleep(100)"), dict(os.environ), tmp_path / "log")
    assert child.poll() is None
    os.kill(starter.process.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    end_process(child)
    while running_processes(child.pid):  # killed, but not by its parent
        time.sleep(0.02)
    assert starter.start(command("pass"), dict(os.environ), tmp_path / "log").wait() == 0


def test_a_starter_that_is_killed_while_it_imports_is_said_and_the_next_step_has_another(starter, tmp_path):
    (tmp_path / "deadly.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(step_process.StarterError, match="killed before it began"):
        starter.start(command("from deadly import x"), dict(os.environ), tmp_path / "log")
    assert starter.start(command("pass"), dict(os.environ), tmp_path / "log").wait() == 0


def test_the_starter_ends_with_the_run_that_is_killed_while_it_imports(tmp_path):
    (tmp_path / "slow.py").write_text("import time, pathlib\npathlib.Path('began').touch()\ntime.sleep(2)\n")
    script = (
        "import os; from pathlib import Path; from pipelines.step_process import StepStarter\n"
        f"StepStarter(os.environ, []).start({command('from slow import x')!r}, "
        "os.environ, Path('log'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    run = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    (starter,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.kill()
    run.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{starter}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{starter}").exists()


def test_what_a_component_imports_is_known_from_its_source_and_nothing_on_a_machine_with_gpus(monkeypatch, tmp_path):
    source = "def f():\n    from blip.results import Result\n    from components.context import at_work\n"
    assert modules_of(source) == ["blip.results", "components.context", "mlflow", "deepspeed"]
    assert modules_of("from kfp import dsl\n\ndef f():\n    from json import loads\n") == ["json"]
    monkeypatch.setattr(step_process, "GPU_DEVICES", (str(tmp_path),))
    assert modules_of(source) == []
