"""A pipeline on one machine: step after step in the order of its docstring, shown as they go, resumed from the cache."""

import contextlib
import copy
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from kfp import dsl, local
from kfp.dsl.graph_component import GraphComponent
from kfp.local import cache, pipeline_orchestrator, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.status import Status
from rich.console import Console
from rich.markup import escape

from components.revision import revision
from pipelines.parameters import Step, steps

HERE = "python-of-this-machine"
"""The image of every step: the cache compares images, and steps of this machine have none, whatever a cluster would run."""
ROOT = Path(__file__).parent.parent
"""The checkout: steps import `components` from it."""
GRACE = 20.0
"""Seconds that a step gets to save its state after Ctrl-C."""
POLL = 0.05
"""Seconds between two looks whether a step's processes have ended."""
ALARMS = "alarms"
"""The key of a step's figures that holds its alarms."""

REVISION = "revision.txt"
"""A file beside a step's artifacts: the code's revision that made them."""

Outputs = dict[str, Any]


class StepError(RuntimeError):
    """A step failed; the message says which, why, and where its log is."""

    @property
    def is_mistake(self) -> bool:
        """Whether the settings are wrong, so that the same command cannot succeed."""
        return " failed: ConfigError: " in str(self).partition("\n")[0]


class RootError(RuntimeError):
    """A run cannot work in its folder; the message names the folder, the reason and the way out."""


def run(
    pipeline: GraphComponent, arguments: dict[str, Any], root: Path, console: Console, again: Collection[str] = ()
) -> dict[str, Outputs]:
    """Runs what is not in the cache under `root` yet, and returns the outputs of each step that a condition did not leave out, in order.

    Steps named in `again` run whatever the cache holds, and with them all that takes what they make.
    Raises StepError for the first step that fails, after which the next run goes on from there, and RootError.
    """
    numbered = steps(pipeline)
    image = {"image": HERE} if "image" in (pipeline.component_spec.inputs or {}) else {}
    spec = in_order(pipeline.pipeline_spec, numbered)
    warnings.filterwarnings("ignore", module="kfp")
    with alone(root, console) as lock, tempfile.TemporaryDirectory(prefix="blip-") as scratch:
        local.init(
            local.SubprocessRunner(use_venv=False), str(root), os.path.join(scratch, "workspace"), enable_caching=True
        )
        watched = Watch(numbered, console, scratch, lock, again)
        # kfp tells its whole mind, executor inputs and all, on standard output
        with watched.in_place(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            pipeline_orchestrator.run_local_pipeline(spec, {**arguments, **image})
    return watched.outputs


def in_order(pipeline_spec: Any, numbered: list[Step]) -> Any:
    """The pipeline as one machine runs it: one step at a time, in the order of the docstring, without retries.

    kfp.local would choose any order that the edges allow, name the folders train, train-2 and so on, and wait between attempts that are
    meant for lost nodes.
    """
    spec = copy.deepcopy(pipeline_spec)
    for executor in spec.deployment_spec["executors"].values():
        executor["container"]["image"] = HERE
    numbers, found = {step.name: step.number for step in numbered}, []

    def arrange(dag: Any) -> int:
        """Chains the tasks of a group and of the groups in it, and returns the number of the first."""
        first = {}
        for key, task in dag.tasks.items():
            task.ClearField("retry_policy")
            component = pipeline_spec.components[task.component_ref.name]
            if component.HasField("dag"):
                first[key] = arrange(spec.components[task.component_ref.name].dag)
                continue
            name = task.task_info.name
            found.append(name)
            first[key] = numbers.get(name, 0)
            spec.components[f"comp-{name}"].CopyFrom(component)
            task.component_ref.name = f"comp-{name}"
        for earlier, key in pairwise(sorted(first, key=lambda key: first[key])):
            if earlier not in (needed := dag.tasks[key].dependent_tasks):
                needed.append(earlier)
        return min(first.values())

    arrange(spec.root.dag)
    assert sorted(found) == sorted(numbers), f"the description must number the steps {sorted(found)}"
    return spec


class Lock:
    """The folder's lock and, in its file, who holds it: the run and its step at work, each known by process id and start."""

    def __init__(self, file: TextIO):
        self.file = file
        self.run = named(os.getpid())

    def note(self, step: int | None = None) -> None:
        """Writes down the step that is at work, which leads its process group."""
        self.file.seek(0)
        self.file.truncate()
        json.dump({"host": socket.gethostname(), "run": self.run, "step": named(step) if step else None}, self.file)
        self.file.flush()


@contextlib.contextmanager
def alone(root: Path, console: Console) -> Iterator[Lock]:
    """Holds the folder for one run, once what a killed run left behind has ended.

    Steps inherit the lock, so that one that outlives its run still holds it. Raises RootError where another run is at work, and
    where nothing can be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("a+") as file:
            if not taken(file):
                end_left_behind(file, root, console)
            lock = Lock(file)
            lock.note()
            yield lock
    except FileExistsError:
        raise RootError(f"--root {root} is a file: give a folder") from None
    except BrokenPipeError:  # who read what is said has gone
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        way_out = f"make {root} a folder that can be written to and has room, or give another --root"
        raise RootError(f"{place}{error.strerror or error}; {way_out}") from None


def taken(file: TextIO) -> bool:
    """Takes the lock, and returns whether nobody else had it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_left_behind(file: TextIO, root: Path, console: Console) -> None:
    """Ends the step that a killed run left behind, and takes its lock. Raises RootError where a run is still at work."""
    file.seek(0)
    try:
        held = json.load(file)
        run, step = held["run"], held["step"]
        here = held["host"] == socket.gethostname()
    except (ValueError, KeyError, TypeError):
        run, step, here = "", None, False  # it has not said yet
    if not here or is_alive(run):
        raise RootError(f"another run is at work in {root}: wait for it, or give another --root")
    console.print(
        "[yellow]![/] a run was killed here and its step goes on: it is told to save its state and end", highlight=False
    )
    if step and is_alive(step):
        end_group(int(step.partition(" ")[0]))
    deadline = time.monotonic() + GRACE
    while not taken(file):
        if time.monotonic() > deadline:
            raise RootError(
                f"a step that a killed run left behind in {root} does not end: end its processes, or give another --root"
            )
        time.sleep(POLL)


def named(pid: int) -> str:
    """A process by id and start, for ids are used again."""
    return f"{pid} {start_of(pid)}"


def is_alive(process: str) -> bool:
    pid, _, started = process.partition(" ")
    return bool(started) and start_of(int(pid)) == started


def start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty for one that has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


class Watch:
    """Takes the place of kfp.local's way to run a task's process: announces it, shows its progress, keeps its output in its own log."""

    def __init__(self, numbered: list[Step], console: Console, scratch: str, lock: Lock, again: Collection[str]):
        self.steps = {step.name: step for step in numbered}
        self.console, self.scratch, self.lock, self.again = console, scratch, lock, again
        self.outputs: dict[str, Outputs] = {}
        self.step = numbered[0]
        self.failure: StepError | None = None
        self.ran = False

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """kfp.local has no hooks: the two functions that it calls for a task and for its process are replaced for a while."""
        self.execute_single_task = task_executor.execute_single_task
        process = subprocess_task_handler.run_local_subprocess
        task_executor.execute_single_task = self.task
        subprocess_task_handler.run_local_subprocess = self.process
        try:
            yield
        finally:
            task_executor.execute_single_task = self.execute_single_task
            subprocess_task_handler.run_local_subprocess = process

    def announce(self, end: str) -> None:
        width = len(str(len(self.steps)))
        number = f"\\[{self.step.number:>{width}}/{len(self.steps)}]"
        self.console.print(
            f"[dim]{number}[/] [bold]{self.step.name}[/] — {escape(self.step.purpose)}{end}", highlight=False
        )

    def task(self, task_spec: Any, **others: Any) -> tuple[Outputs, Status]:
        """Runs a task, or takes its outputs from the cache."""
        self.step, self.ran = self.steps[task_spec.task_info.name], False
        with forgotten() if self.step.name in self.again else contextlib.nullcontext():
            outputs, status = self.execute_single_task(task_spec=task_spec, **others)
        if self.failure:
            raise self.failure
        if not self.ran:
            self.announce(f" [dim]· done before{made_by_other(outputs)}[/]")
        self.outputs[self.step.name] = outputs
        return outputs, status

    def process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs a task's process to its end, its output in a log beside its artifacts."""
        from blip.progress import follow_progress

        self.ran = True
        self.announce("")
        folder = Path(
            json.loads(full_command[full_command.index("--executor_input") + 1])["outputs"]["outputFile"]
        ).parent
        folder.mkdir(parents=True, exist_ok=True)
        log, records = folder / "log.txt", folder / "progress.jsonl"
        (folder / REVISION).write_text(revision())
        environment = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent.parent}/mlflow.db",
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "BLIP_GROUP": folder.parent.name,
            "BLIP_REVISION": revision(),
            "MLFLOW_RUN_NAME": self.step.name,
            "BLIP_PROGRESS": str(records),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": self.scratch,
            **(env_vars or {}),
        }
        start = time.monotonic()
        with log.open("w") as sink, follow_progress(records, self.console):
            child = subprocess.Popen(
                full_command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=[self.lock.file.fileno()],
            )
            try:
                self.lock.note(child.pid)
                code = child.wait()
            except KeyboardInterrupt:
                self.console.print(
                    f"stopping {self.step.name}, which saves its state (once more to hurry)", highlight=False
                )
                raise
            finally:
                end(child)
        if code:
            self.failure = StepError(
                f"{self.step.name} failed: {reason(log.read_text(errors='replace'), code)}\nits log: {log}"
            )
        else:
            self.console.print(
                f"[green]✓[/] {self.step.name} [dim]{duration(time.monotonic() - start)}[/]", highlight=False
            )
        return code


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Lets the cache know nothing for a while; what is done meanwhile takes the place of what it knew."""
    known = cache.LocalCache.get
    setattr(cache.LocalCache, "get", lambda *_: None)  # noqa: B010 (kfp has no switch that keeps what is made)
    try:
        yield
    finally:
        setattr(cache.LocalCache, "get", known)  # noqa: B010


def made_by_other(outputs: Outputs) -> str:
    """Says which revision of the code made outputs that are found again, where it was another than this."""
    folders = {path.parent for path in artifacts(outputs).values()}
    made = {path.read_text() for folder in folders if (path := folder / REVISION).is_file()}
    return f" by revision {made.pop()}" if made and made != {revision()} else ""


def alarms(outputs: Outputs) -> list[str]:
    """The alarms that a step raised, in words."""
    path = artifacts(outputs).get("metrics")
    try:
        raised = json.loads(path.read_text()).get(ALARMS, []) if path else []
    except ValueError:
        return []
    return [f"{alarm['name'].replace('_', ' ')} at step {alarm['step']}" for alarm in raised]


def end(child: subprocess.Popen[Any]) -> None:
    """Ends what is left of a step: politely, so that it saves its state, then for good."""
    # a second Ctrl-C is in a hurry
    with contextlib.suppress(KeyboardInterrupt):
        if child.poll() is None:
            end_group(child.pid, child.poll)
    # workers may outlive the process that started them
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def end_group(group: int, reap: Callable[[], object] = lambda: None) -> None:
    """Tells all processes of a group to end, waits until they have, and ends for good those that have not after GRACE seconds.

    The shell that leads a step's group may end at once, while the step itself still saves its state.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while members(group) and time.monotonic() < deadline:
            reap()
            time.sleep(POLL)
        os.killpg(group, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(") ")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def reason(log: str, code: int) -> str:
    """Why a step failed: what ended its process, or the exception at the end of its log."""
    number = code - 128 if code > 128 else -code
    if number in set(signal.Signals):
        memory = " (the machine ran out of memory, most likely)" if number == signal.SIGKILL else ""
        return f"ended by {signal.Signals(number).name}{memory}"
    # torch marks lines of a process group by their rank
    _, traceback, last = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE).rpartition(
        "Traceback (most recent call last):\n"
    )
    exception = re.search(r"^(?:\w+\.)*(\w.*)", last, re.MULTILINE | re.DOTALL) if traceback else None
    return exception[1].strip() if exception else f"exit code {code}"


def duration(seconds: float) -> str:
    """`41 s`, `2 min 05 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def artifacts(outputs: Outputs) -> dict[str, Path]:
    """Where a step's artifacts lie."""
    return {name: Path(value.path) for name, value in outputs.items() if isinstance(value, dsl.Artifact)}
