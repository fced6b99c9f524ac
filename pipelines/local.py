"""Runs a pipeline on one machine: one step at a time, in the order of its docstring, resumed from the cache."""

import contextlib
import copy
import json
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.dsl.graph_component import GraphComponent
from kfp.local import cache, pipeline_orchestrator, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.status import Status
from rich.console import Console
from rich.markup import escape

from components.revision import ROOT, revision
from pipelines.parameters import ParameterError, PipelineStep, steps
from pipelines.placement import IMAGE_VARIABLE
from pipelines.processes import end_process
from pipelines.run_lock import RunLock, exclusive_run

LOCAL_IMAGE = "python-of-this-machine"
"""The image of every step: steps run without one here, but the cache compares it."""
ALARMS = "alarms"
"""The key of a step's alarms in the metadata of its page."""
REVISION_FILE = "revision.txt"
"""The file beside a step's artifacts that holds the revision of the code that made them."""

Outputs = dict[str, Any]


class StepError(RuntimeError):
    """A step failed; the message names the step, the reason and the log."""

    @property
    def is_mistake(self) -> bool:
        """Whether a setting is wrong, so that the same command cannot succeed."""
        return " failed: ConfigError: " in str(self).partition("\n")[0]


def run_locally(
    pipeline: GraphComponent, arguments: dict[str, Any], root: Path, console: Console, again: Collection[str] = ()
) -> dict[str, Outputs]:
    """Runs the steps that are not in the cache under `root`, and returns the outputs of each step, in order.

    Those of the second round of a loop are named as `fine-tune 2`. A step that a condition excludes has no outputs.
    Steps named in `again` run in any case, and with them all steps that take their outputs. Raises StepError for the
    first step that fails, from which the next run resumes, RootError, and ParameterError if MLflow's file cannot lie in
    `root`.
    """
    check_root(root)
    numbered = steps(pipeline)
    spec = in_order(pipeline.pipeline_spec, numbered)
    warnings.filterwarnings("ignore", module="kfp")
    with exclusive_run(root, console) as lock, tempfile.TemporaryDirectory(prefix="blip-") as scratch:
        local.init(
            local.SubprocessRunner(use_venv=False), str(root), os.path.join(scratch, "workspace"), enable_caching=True
        )
        runner = StepRunner(numbered, console, root, scratch, lock, again)
        # kfp prints executor inputs and much else to standard output
        with runner.installed(), quiet_kfp(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                pipeline_orchestrator.run_local_pipeline(spec, arguments)
            except RuntimeError:
                if runner.failure:  # of a step in a loop, whose name kfp says instead
                    raise runner.failure from None
                raise
    return runner.outputs


@contextlib.contextmanager
def quiet_kfp() -> Iterator[None]:
    """Keeps kfp.local's own log, which says again what failed in a loop, from the terminal within the context."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def mlflow_file(root: Path) -> str:
    """Returns the address of MLflow's file of the runs in `root`."""
    return f"sqlite:///{root}/mlflow.db"


def check_root(root: Path) -> None:
    """Raises ParameterError if MLflow cannot use a file in this folder, unless another place is set for its records."""
    from blip.tracking.server import SettingError, check_file_address

    try:
        check_file_address(os.environ.get("MLFLOW_TRACKING_URI") or mlflow_file(root))
    except SettingError as error:
        raise ParameterError(f"--root {root}: {error}") from None


def in_order(pipeline_spec: Any, numbered: list[PipelineStep]) -> Any:
    """Returns the pipeline for one machine: its steps in the order of the docstring, without retries.

    By itself kfp.local runs steps in any order that the edges allow, names the folders train, train-2 and so on, and
    pauses between attempts that are meant for lost nodes.
    """
    spec = copy.deepcopy(pipeline_spec)
    for executor in spec.deployment_spec["executors"].values():
        container = executor["container"]
        container["image"] = LOCAL_IMAGE
        if "env" in container:
            container["env"] = [entry for entry in container["env"] if entry["name"] != IMAGE_VARIABLE]
    numbers = {step.name: step.number for step in numbered}
    found = []

    def arrange(dag: Any) -> int:
        """Chains the tasks of a group and of its subgroups, and returns the number of its first step."""
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
            dependencies = dag.tasks[key].dependent_tasks
            if earlier not in dependencies:
                dependencies.append(earlier)
        return min(first.values())

    arrange(spec.root.dag)
    assert sorted(found) == sorted(numbers), f"the description must number the steps {sorted(found)}"
    return spec


class StepRunner:
    """Replaces kfp.local's function that runs a task's process: shows its progress and writes its output to a log."""

    def __init__(
        self,
        numbered: list[PipelineStep],
        console: Console,
        root: Path,
        scratch: str,
        lock: RunLock,
        again: Collection[str],
    ):
        self.steps = {step.name: step for step in numbered}
        self.console, self.root, self.scratch, self.lock, self.again = console, root, scratch, lock, again
        self.outputs: dict[str, Outputs] = {}
        self.step = numbered[0]
        self.failure: StepError | None = None
        self.ran = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replaces kfp.local's functions for a task and for its process within the context: kfp.local has no hooks."""
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
        """Prints the number, name and purpose of the current step."""
        width = len(str(len(self.steps)))
        number = f"\\[{self.step.number:>{width}}/{len(self.steps)}]"
        self.console.print(
            f"[dim]{number}[/] [bold]{self.step.name}[/] — {escape(self.step.purpose)}{end}", highlight=False
        )

    def task(self, task_spec: Any, **others: Any) -> tuple[Outputs, Status]:
        """Runs a task, or takes its outputs from the cache."""
        if self.failure:  # kfp would begin the next round of a loop
            raise self.failure
        self.step = self.steps[task_spec.task_info.name]
        self.ran = False
        repeat = self.step.name in self.again
        with cache_reads_disabled() if repeat else contextlib.nullcontext():
            outputs, status = self.execute_single_task(task_spec=task_spec, **others)
        if self.failure:
            raise self.failure
        if not self.ran:
            self.announce(f" [dim]· done before{other_revision(outputs)}[/]")
        rounds = sum(name.partition(" ")[0] == self.step.name for name in self.outputs)
        self.outputs[f"{self.step.name} {rounds + 1}" if rounds else self.step.name] = outputs
        return outputs, status

    def process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs a task's process with its output in a log beside its artifacts, and returns the exit code."""
        from blip.progress import follow_progress

        self.ran = True
        self.announce("")
        executor_input = json.loads(full_command[full_command.index("--executor_input") + 1])
        folder = Path(executor_input["outputs"]["outputFile"]).parent
        folder.mkdir(parents=True, exist_ok=True)
        log, records = folder / "log.txt", folder / "progress.jsonl"
        (folder / REVISION_FILE).write_text(revision(), encoding="utf-8")
        environment = {
            "MLFLOW_TRACKING_URI": mlflow_file(self.root),
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "BLIP_GROUP": folder.relative_to(self.root).parts[0],  # the folder of a step in a loop lies deeper
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
                self.lock.write_holder(child.pid)
                code = child.wait()
            except KeyboardInterrupt:
                stopping = f"stopping {self.step.name}, which saves its state (once more to hurry)"
                self.console.print(stopping, highlight=False)
                raise
            finally:
                end_process(child)
        if code:
            why = failure_reason(log.read_text(encoding="utf-8", errors="replace"), code)
            self.failure = StepError(f"{self.step.name} failed: {why}\nits log: {log}")
        else:
            duration = format_duration(time.monotonic() - start)
            self.console.print(f"[green]✓[/] {self.step.name} [dim]{duration}[/]", highlight=False)
        return code


@contextlib.contextmanager
def cache_reads_disabled() -> Iterator[None]:
    """Makes every cache lookup miss within the context; results are still written to the cache."""
    lookup = cache.LocalCache.get
    setattr(cache.LocalCache, "get", lambda *_: None)  # noqa: B010 (kfp's own switch disables writes, too)
    try:
        yield
    finally:
        setattr(cache.LocalCache, "get", lookup)  # noqa: B010


def other_revision(outputs: Outputs) -> str:
    """Returns ` by revision R` for cached outputs that another revision of the code made, else an empty string."""
    paths = artifacts(outputs).values()
    files = {folder / REVISION_FILE for path in paths for folder in (path.parent, path.parent.parent)}
    revisions = {file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return f" by revision {revisions.pop()}" if revisions and revisions != {revision()} else ""


def alarms(outputs: Outputs) -> list[str]:
    """Returns the alarms of a step, which stand in the metadata of its page."""
    return [alarm for page in pages(outputs) for alarm in page.metadata.get(ALARMS, [])]


def pages(outputs: Outputs) -> list[dsl.HTML]:
    """Returns a step's page, if it has one; the interface shows it by the output's name, which differs by component."""
    return [value for value in outputs.values() if isinstance(value, dsl.HTML)]


def failure_reason(log: str, code: int) -> str:
    """Returns why a step failed: the signal that ended it, the last exception in its log, or its exit code."""
    number = code - 128 if code > 128 else -code
    if number in set(signal.Signals):
        memory = " (the machine ran out of memory, most likely)" if number == signal.SIGKILL else ""
        return f"ended by {signal.Signals(number).name}{memory}"
    # torch prefixes the lines of a process group with the rank
    log = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE)
    _, traceback, last = log.rpartition("Traceback (most recent call last):\n")
    exception = re.search(r"^(?:\w+\.)*(\w.*)", last, re.MULTILINE | re.DOTALL) if traceback else None
    return exception[1].strip() if exception else f"exit code {code}"


def format_duration(seconds: float) -> str:
    """Returns a duration such as `41 s`, `2 min 05 s` or `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def artifacts(outputs: Outputs) -> dict[str, Path]:
    """Returns the paths of a step's artifacts by name."""
    return {name: Path(value.path) for name, value in outputs.items() if isinstance(value, dsl.Artifact)}
