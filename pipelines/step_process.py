"""The processes of steps, forked from one that has imported what they need: imports take longer than a light step.

`python -m pipelines.step_process DESCRIPTOR` is that process. It ends when the run does.
"""

import ast
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from kfp.dsl.executor_main import executor_main

IMPORTED_LATE = ("mlflow", "deepspeed")
"""Modules that the library imports within functions, in most steps."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
COMPONENT = "ephemeral_component.py"


class StarterError(RuntimeError):
    """The process that starts steps was killed while it imported what one needs."""


class StepProcess:
    """A forked process that runs a step; it leads a process group of its own."""

    def __init__(self, channel: Connection):
        self.channel = channel
        self.number: int | None = None
        self.code: int | None = None

    @property
    def pid(self) -> int:
        """The process id, which also names the process group."""
        if self.number is None:
            self.number = int(self.channel.recv())
        return self.number

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None while the process runs."""
        return self.wait() if self.pid and self.channel.poll() else self.code

    def wait(self) -> int:
        """Waits for the end of the process, and returns its exit code, negative for a signal."""
        if self.pid and self.code is None:
            try:
                self.code = self.channel.recv()
            except EOFError:  # who forked it was killed
                self.code = -signal.SIGKILL
        assert self.code is not None
        return self.code


class StepStarter:
    """Starts steps, one after the other, from a process that has imported what they need."""

    def __init__(self, environment: Mapping[str, str], inherited: Sequence[int]):
        """`environment` is what all steps share; `inherited` are the file descriptors that they hold open."""
        self.environment, self.inherited = environment, inherited
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.channel.close()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> StepProcess:
        """Starts a step, given the command line that kfp makes for it; its output goes to `log`.

        Raises StarterError.
        """
        source, *arguments = command[command.index("-ec") + 2 :]
        if not self.process or self.process.poll() is not None:
            self.process = self.begin()
        # an answer is waited for before the step exists, so that an interrupted import leaves none behind
        self.channel.send((str(log), modules_of(source)))
        try:
            self.channel.recv()
        except EOFError:
            self.process.wait()
            raise StarterError("killed before it began (the machine ran out of memory, most likely)") from None
        self.channel.send((source, arguments, dict(environment)))
        return StepProcess(self.channel)

    def begin(self) -> subprocess.Popen[bytes]:
        """Starts the process that imports and forks, in a session that a terminal's Ctrl-C does not reach."""
        self.channel, theirs = Pipe()
        with theirs:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.step_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(self.environment),
                start_new_session=True,
                pass_fds=[theirs.fileno(), *self.inherited],
            )


def modules_of(source: str) -> list[str]:
    """Returns the modules that a component's source imports within its function, and what those import late.

    None on a machine with GPUs: a process that is forked after a library has looked for them cannot use CUDA.
    """
    if any(os.path.exists(device) for device in GPU_DEVICES):
        return []
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    imports = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    found = [node.module for node in imports if node.module]
    ours = any(name.partition(".")[0] == "components" for name in found)
    return [*found, *(IMPORTED_LATE if ours else ())]


def fork_steps(channel: Connection) -> tuple[str, list[str], dict[str, str]] | None:
    """Imports modules and forks a process for each step until the run has ended, then returns None.

    In a forked process it returns what is to be run: the component's source, the executor's arguments and the
    environment.
    """
    with suppress(EOFError, ConnectionError):
        while True:
            log, modules = channel.recv()
            send_output_to(log)
            for module in modules:
                with suppress(Exception):  # the step fails of it, too, and says why
                    importlib.import_module(module)
            channel.send(True)
            order = channel.recv()
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                channel.close()
                return order
            with suppress(OSError):  # whoever is first: the group is there before its number is known
                os.setpgid(child, child)
            channel.send(child)
            _, status = os.waitpid(child, 0)
            channel.send(os.waitstatus_to_exitcode(status))
    return None


def send_output_to(log: str) -> None:
    """Appends standard output and error of this process to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)


def run_component(source: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a component as the command line does that kfp makes for it."""
    os.environ.clear()
    os.environ.update({**environment, "_KFP_RUNTIME": "true"})
    component = Path(tempfile.mkdtemp(), COMPONENT)
    component.write_text(source, encoding="utf-8")
    sys.argv = ["executor_main", "--component_module_path", str(component), *arguments]
    executor_main()


def main() -> None:
    """Forks the steps of a run; goes on as the step in each forked process."""
    if order := fork_steps(Connection(int(sys.argv[1]))):
        run_component(*order)


if __name__ == "__main__":
    main()
