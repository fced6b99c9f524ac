"""Runs the steps of a pipeline on one machine: announces them, shows their progress, and says why one failed."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from kfp.local import cache, subprocess_task_handler
from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor
from kfp.local.status import Status
from rich.console import Console
from rich.markup import escape

from components.revision import ROOT, revision
from pipelines.parameters import PipelineStep
from pipelines.processes import end_process
from pipelines.run_lock import RunLock
from pipelines.step_outputs import REVISION_FILE, Outputs, other_revision
from pipelines.step_process import StarterError, StepStarter


class StepError(RuntimeError):
    """A step failed; the message names the step, the reason and the log."""

    @property
    def is_mistake(self) -> bool:
        """Whether a setting is wrong, so that the same command cannot succeed."""
        return " failed: ConfigError: " in str(self).partition("\n")[0]


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
        self.console, self.root, self.lock, self.again = console, root, lock, again
        self.environment = {
            "MLFLOW_TRACKING_URI": mlflow_file(root),
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "BLIP_REVISION": revision(),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": scratch,
        }
        self.starter = StepStarter(self.environment, [lock.file.fileno()])
        self.outputs: dict[str, Outputs] = {}
        self.step = numbered[0]
        self.failure: StepError | None = None
        self.ran = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replaces kfp.local's functions for a loop, a task and its process within the context: it has no hooks."""
        self.execute_single_task = task_executor.execute_single_task
        process = subprocess_task_handler.run_local_subprocess
        executor = enhanced_dag_orchestrator.ParallelExecutor
        rounds = executor.execute_parallel_tasks
        task_executor.execute_single_task = self.task
        subprocess_task_handler.run_local_subprocess = self.process
        setattr(executor, "execute_parallel_tasks", run_rounds)  # noqa: B010 (of another signature)
        try:
            with self.starter:
                yield
        finally:
            task_executor.execute_single_task = self.execute_single_task
            subprocess_task_handler.run_local_subprocess = process
            executor.execute_parallel_tasks = rounds

    def announce(self, end: str) -> None:
        """Prints the number, name and purpose of the current step."""
        width = len(str(len(self.steps)))
        number = f"\\[{self.step.number:>{width}}/{len(self.steps)}]"
        self.console.print(
            f"[dim]{number}[/] [bold]{self.step.name}[/] — {escape(self.step.purpose)}{end}", highlight=False
        )

    def task(self, task_spec: Any, **others: Any) -> tuple[Outputs, Status]:
        """Runs a task, or takes its outputs from the cache."""
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
            **self.environment,
            "BLIP_GROUP": folder.relative_to(self.root).parts[0],  # the folder of a step in a loop lies deeper
            "MLFLOW_RUN_NAME": self.step.name,
            "BLIP_PROGRESS": str(records),
            **(env_vars or {}),
        }
        start = time.monotonic()
        log.touch()
        with follow_progress(records, self.console):
            try:
                child = self.starter.start(full_command, environment, log)
            except StarterError as error:
                self.failure = StepError(f"{self.step.name} failed: {error}\nits log: {log}")
                return 1
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


def run_rounds(_: object, *, tasks: Iterable[tuple[str, Any]], io_store: Any, **shared: Any) -> tuple[Outputs, Status]:
    """Runs the rounds of a loop one after the other, in this thread: in kfp.local's threads Ctrl-C ends no step."""
    shared.pop("parallelism_limit")
    made: Outputs = {}
    for name, task in tasks:
        outputs, status = enhanced_dag_orchestrator.execute_task(
            task_name=name, task_spec=task, io_store=io_store, **shared
        )
        if status == Status.FAILURE:
            return {}, status
        made[name] = outputs
        for key, value in outputs.items():
            io_store.put_task_output(name, key, value)
    return made, Status.SUCCESS


@contextlib.contextmanager
def cache_reads_disabled() -> Iterator[None]:
    """Makes every cache lookup miss within the context; results are still written to the cache."""
    lookup = cache.LocalCache.get
    setattr(cache.LocalCache, "get", lambda *_: None)  # noqa: B010 (kfp's own switch disables writes, too)
    try:
        yield
    finally:
        setattr(cache.LocalCache, "get", lookup)  # noqa: B010


def mlflow_file(root: Path) -> str:
    """Returns the address of MLflow's file of the runs in `root`."""
    return f"sqlite:///{root}/mlflow.db"


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
