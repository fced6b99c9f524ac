"""A pipeline on one machine: step after step in the order of its docstring, shown as they go, resumed from the cache."""

import contextlib
import copy
import fcntl
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.dsl.graph_component import GraphComponent
from kfp.local import pipeline_orchestrator, subprocess_task_handler
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
GRACE = 20
"""Seconds that a step gets to save its state after Ctrl-C."""

Outputs = dict[str, Any]


class StepError(RuntimeError):
    """A step failed; the message says which, why, and where its log is."""


def run(pipeline: GraphComponent, arguments: dict[str, Any], root: Path, console: Console) -> dict[str, Outputs]:
    """Runs what is not in the cache under `root` yet, and returns the outputs of each step that a condition did not leave out, in order.

    Raises StepError for the first step that fails; the next run goes on from there.
    """
    numbered = steps(pipeline)
    image = {"image": HERE} if "image" in (pipeline.component_spec.inputs or {}) else {}
    spec = in_order(pipeline.pipeline_spec, numbered)
    warnings.filterwarnings("ignore", module="kfp")
    with alone(root) as lock, tempfile.TemporaryDirectory(prefix="blip-") as scratch:
        local.init(local.SubprocessRunner(use_venv=False), str(root), os.path.join(scratch, "workspace"), enable_caching=True)
        watched = Watch(numbered, console, scratch, lock)
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


@contextlib.contextmanager
def alone(root: Path) -> Iterator[int]:
    """Holds the folder for one run. Its steps inherit the lock, so that one left behind by a killed run still holds it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(f"another run, or a step it left behind, is at work in {root}: wait for it, or give another --root") from None
        yield lock.fileno()


class Watch:
    """Takes the place of kfp.local's way to run a task's process: announces it, shows its progress, keeps its output in its own log."""

    def __init__(self, numbered: list[Step], console: Console, scratch: str, lock: int):
        self.steps = {step.name: step for step in numbered}
        self.console, self.scratch, self.lock = console, scratch, lock
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
        self.console.print(f"[dim]{number}[/] [bold]{self.step.name}[/] — {escape(self.step.purpose)}{end}", highlight=False)

    def task(self, task_spec: Any, **others: Any) -> tuple[Outputs, Status]:
        """Runs a task, or takes its outputs from the cache."""
        self.step, self.ran = self.steps[task_spec.task_info.name], False
        outputs, status = self.execute_single_task(task_spec=task_spec, **others)
        if self.failure:
            raise self.failure
        if not self.ran:
            self.announce(" [dim]· done before[/]")
        self.outputs[self.step.name] = outputs
        return outputs, status

    def process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs a task's process to its end, its output in a log beside its artifacts."""
        from blip.logs import follow

        self.ran = True
        self.announce("")
        folder = Path(json.loads(full_command[full_command.index("--executor_input") + 1])["outputs"]["outputFile"]).parent
        folder.mkdir(parents=True, exist_ok=True)
        log, records = folder / "log.txt", folder / "progress.jsonl"
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
        with log.open("w") as sink, follow(records, self.console):
            child = subprocess.Popen(
                full_command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=[self.lock],
            )
            try:
                code = child.wait()
            finally:
                end(child)
        if code:
            self.failure = StepError(f"{self.step.name} failed: {reason(log.read_text(errors='replace'), code)}\nits log: {log}")
        else:
            self.console.print(f"[green]✓[/] {self.step.name} [dim]{duration(time.monotonic() - start)}[/]", highlight=False)
        return code


def end(child: subprocess.Popen[Any]) -> None:
    """Ends what is left of a step: politely, so that it saves its state, then for good."""
    # a second Ctrl-C is in a hurry
    with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(GRACE)
    # workers may outlive the process that started them
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def reason(log: str, code: int) -> str:
    """Why a step failed: what ended its process, or the exception at the end of its log."""
    number = code - 128 if code > 128 else -code
    if number in set(signal.Signals):
        memory = " (the machine ran out of memory, most likely)" if number == signal.SIGKILL else ""
        return f"ended by {signal.Signals(number).name}{memory}"
    # torch marks lines of a process group by their rank
    _, traceback, last = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE).rpartition("Traceback (most recent call last):\n")
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
