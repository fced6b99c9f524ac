"""A run in MLflow, recorded by a thread of its own so that tracking never delays the work."""

import logging
import math
import os
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Thread
from typing import Any, SupportsFloat

from blip.redaction import redact
from blip.tracking import orphans
from blip.tracking.outbox import Entry, Outbox
from blip.tracking.retries import UnavailableError, is_transient_error, patience, with_retries
from blip.tracking.run import DataInput, Run, flatten, truncate
from blip.tracking.server import TrackingError, experiment_id, is_server, mlflow_client
from blip.tracking.tags import short_digest, source_tags
from blip.tracking.unsent import save_records

log = logging.getLogger("blip")

WRITER = "mlflow-writer"
FLUSH_SECONDS = 2.0
HEARTBEAT_SECONDS = 60.0
ANSWER_SECONDS = 30.0
"""Seconds that the work waits for a server's first answer; MLflow's client waits 120 seconds for each."""
KILL_TIMEOUT = 5.0
"""Seconds to record the end of a run that is killed: schedulers follow SIGTERM by SIGKILL soon."""
FAILURE_PATIENCE = 30.0
"""Seconds to record the end of a run that failed, before its error is shown."""
VIEW = "?workflowType=machine_learning"
"""Selects the pages of runs, curves and models: by default MLflow shows traces of language models."""


class MlflowRun(Run):
    """A run in MLflow. One thread opens it and writes to it, since importing MLflow and its requests take seconds.

    While MLflow is unavailable, records wait and are sent again: at the end of the run for `retries.patience` seconds,
    after which they are saved to a file. A refusal by MLflow is raised as TrackingError at the next call.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        group: str = "",
        key: str = "",
        given: str = "",
    ):
        """`given` is the id of an existing run; an unfinished run with the same `key` is resumed."""
        self.uri, self.experiment, self.name = uri, experiment, name
        self.group, self.key, self.given = group, key, given
        self.start_tags = dict(tags)
        self.group_run = self.experiment_id = ""
        self.start_time = int(time.time() * 1000)  # a short run may end before the writer has imported MLflow
        self.mark = uuid.uuid4().hex  # finds the run if the answer to its creation was lost
        self.monitor: Any = None
        self.outbox = Outbox(uri)
        self.last_write = time.monotonic()
        self.warned = False
        self.deadline = math.inf
        self.unavailable, self.over = Event(), Event()
        self.asked = math.inf  # when MLflow was imported and the first request began
        self.writer = ThreadPoolExecutor(1, WRITER)
        self.opened: Future[str] = self.writer.submit(self.open)
        self.work: Future[Any] = self.opened
        # a process that is forked during an import would wait for the import lock for ever
        os.register_at_fork(before=self.before_fork)
        self.heartbeat = Thread(target=self.beat, name="mlflow-heartbeat", daemon=True)
        self.heartbeat.start()

    @property
    def id(self) -> str:
        return self.opened.result()

    @property
    def url(self) -> str:
        """The address of the run's page, empty if MLflow is no server or did not answer yet.

        The variable BLIP_MLFLOW_UI is the address for browsers, where the tracking URI is known inside a cluster alone.
        """
        if not is_server(self.uri) or not self.opened.done() or self.opened.exception():
            return ""
        address = os.environ.get("BLIP_MLFLOW_UI") or self.uri
        return f"{address.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.id}{VIEW}"

    def params(self, values: Mapping[str, Any]) -> None:
        self.put(("params", (name, truncate(value))) for name, value in flatten(values))

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self.put(("metrics", (name, float(value), now, step)) for name, value in values.items())

    def tags(self, values: Mapping[str, Any]) -> None:
        self.put(("tags", (name, truncate(value))) for name, value in values.items())

    def inputs(self, data: Iterable[DataInput]) -> None:
        self.put(("inputs", tuple(dataset)) for dataset in data)

    def artifact(self, path: str | Path, folder: str = "") -> None:
        if not Path(path).is_file():
            raise TrackingError(f"artifact {path}: there is no such file")
        self.put([("artifact", (str(Path(path).resolve()), folder))])

    def artifacts(self, path: str | Path, folder: str = "") -> None:
        if not Path(path).is_dir():
            raise TrackingError(f"artifacts {path}: there is no such folder")
        self.put([("artifacts", (str(Path(path).resolve()), folder))])

    def put(self, entries: Iterable[Entry]) -> None:
        self.check()
        self.outbox.put(entries)
        if time.monotonic() - self.last_write > FLUSH_SECONDS:
            self.write_soon()

    def write_soon(self) -> None:
        if self.work.done():
            self.last_write = time.monotonic()
            self.work = self.writer.submit(self.write)

    def check(self) -> None:
        """Raises TrackingError if MLflow refused the run or a record."""
        if self.opened.done():
            self.opened.result()
        if self.outbox.refused:
            raise self.outbox.refused

    def beat(self) -> None:
        """Updates the heartbeat tag until the run ends."""
        while not self.over.wait(HEARTBEAT_SECONDS):
            if self.work.done():
                self.outbox.put([("tags", (orphans.ALIVE_TAG, str(int(time.time()))))])
                self.write_soon()

    def before_fork(self) -> None:
        if not threading.current_thread().name.startswith(WRITER):
            self.wait_for_attempt()

    def wait_for_attempt(self) -> None:
        """Waits until MLflow is imported and its first request has ended, of a server at most ANSWER_SECONDS."""
        while not self.opened.done() and not self.unavailable.is_set():
            wait([self.opened], 0.05)
            if is_server(self.uri) and time.monotonic() - self.asked > ANSWER_SECONDS:
                log.warning("MLflow at %s does not answer; records are kept and sent later", self.uri)
                self.unavailable.set()

    def with_retries(self, request: Callable[[], Any]) -> Any:
        return with_retries(self.uri, request, lambda: self.deadline)

    def open(self) -> str:
        """Resumes or creates the run, under the run of its group, and returns its id."""

        def attempt() -> str:
            mlflow_client(self.uri)
            self.asked = min(self.asked, time.monotonic())
            try:
                return self.find_or_create(again=self.unavailable.is_set())
            except Exception as error:
                if is_transient_error(error):
                    self.unavailable.set()
                raise

        return self.with_retries(attempt)

    def find_or_create(self, again: bool) -> str:
        mlflow = mlflow_client(self.uri)
        given, experiment = self.given, ""
        tags = {**self.start_tags, **orphans.process_tags()}
        if not given:
            experiment = experiment_id(self.uri, self.experiment)
            if self.group:
                self.group_run = self.find_or_create_group(experiment)
                tags[orphans.PARENT_TAG] = self.group_run
            if self.key:
                tags |= {"key": self.key, "key.id": short_digest(self.key)}
                given = self.find(experiment, "key.id", short_digest(self.key), unfinished=True)
            if again and not given:
                given = self.find(experiment, "mark", self.mark)
        tags = {name: truncate(value) for name, value in tags.items()}
        if given:
            run = mlflow.get_run(given)
            self.outbox.known_params = dict(run.data.params)
            mlflow.update_run(given, status="RUNNING")
            self.outbox.put(("tags", entry) for entry in tags.items())
        else:
            run = mlflow.create_run(experiment, self.start_time, {**tags, "mark": self.mark}, self.name)
        self.experiment_id = run.info.experiment_id
        if experiment:
            step = os.environ.get("MLFLOW_RUN_NAME", "")
            orphans.close_orphans(mlflow, experiment, self.group_run, step, run.info.run_id)
        self.monitor_system(run.info.run_id)
        return run.info.run_id

    def find_or_create_group(self, experiment: str) -> str:
        """Returns the id of the group's run, and sets it running."""
        mlflow, digest = mlflow_client(self.uri), short_digest(self.group)
        found = self.find(experiment, "group.id", digest)
        if not found:
            tags = {"group": truncate(self.group), "group.id": digest, **source_tags(self.start_tags)}
            found = mlflow.create_run(experiment, self.start_time, tags, truncate(self.group)).info.run_id
        mlflow.update_run(found, status="RUNNING")
        return found

    def find(self, experiment: str, tag: str, value: str, unfinished: bool = False) -> str:
        """Returns the id of the newest run with this tag, empty if there is none. `value` is alphanumeric."""
        wanted = f"tags.`{tag}` = '{value}'"
        if unfinished:
            wanted += " and attributes.status != 'FINISHED'"
        newest_first = ["attributes.start_time DESC"]
        found = mlflow_client(self.uri).search_runs([experiment], wanted, max_results=1, order_by=newest_first)
        return found[0].info.run_id if found else ""

    def monitor_system(self, run_id: str) -> None:
        """Records the load of processors, memory and GPUs, unless MLflow's variable turns this off."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(run_id)
            self.monitor.start()

    def write(self) -> None:
        """Writes the pending records; they stay pending while MLflow is unavailable."""
        try:
            with_retries(self.uri, self.flush, lambda: 0.0)
        except UnavailableError as error:
            if not self.warned:
                log.warning("MLflow at %s is unavailable; records are kept and sent later (%s)", self.uri, error)
            self.warned = True
        else:
            self.warned = False

    def flush(self) -> None:
        if self.outbox.pending:
            self.outbox.flush(self.id)

    def close(self, status: str, seconds: float | None = None) -> None:
        """Writes the pending records and ends the run.

        Waits at most `seconds` (by default `retries.patience`) for MLflow, then saves the records that remain to a
        file and logs how to send them. Raises TrackingError if MLflow refused a record.
        """
        try:
            self.hand_over(status, patience(self.uri) if seconds is None else seconds)
        except UnavailableError as error:
            log.warning("%s; %s", error, self.keep_unsent(status))
        except (KeyboardInterrupt, SystemExit):
            self.keep_unsent(status)
            raise
        if self.outbox.refused:
            raise self.outbox.refused

    def hand_over(self, status: str, seconds: float) -> None:
        """Writes the pending records, ends the run and its threads. Raises UnavailableError after so many seconds."""
        self.deadline = time.monotonic() + seconds
        self.over.set()
        try:
            self.writer.submit(self.finish, status).result()
        finally:
            self.deadline = 0.0  # an interrupt of this wait ends the writer's retries, too
            self.writer.shutdown()
            self.heartbeat.join()

    def finish(self, status: str) -> None:
        if self.opened.exception() and self.group_run:
            self.with_retries(lambda: mlflow_client(self.uri).set_terminated(self.group_run, "FAILED"))
        run_id = self.opened.result()
        if self.monitor:
            self.monitor.finish()
        self.with_retries(self.flush)
        final = "FAILED" if self.outbox.refused and status == "FINISHED" else status
        self.with_retries(lambda: self.end(run_id, final))

    def end(self, run_id: str, status: str) -> None:
        """Ends the run, and the group's run unless another run of the group is running."""
        mlflow = mlflow_client(self.uri)
        mlflow.set_terminated(run_id, status)
        if self.group_run and not orphans.has_other_running(mlflow, self.experiment_id, self.group_run, run_id):
            mlflow.set_terminated(self.group_run, status)

    def fail(self, error: BaseException) -> None:
        """Ends the run as failed or killed. A failure to do so is logged, since `error` matters more."""
        by_signal = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
        killed = by_signal or isinstance(error, KeyboardInterrupt)
        message = truncate(redact(f"{type(error).__name__}: {error}"))
        self.outbox.put([("tags", ("error", message))])
        try:
            if killed:
                self.close("KILLED", KILL_TIMEOUT)
            else:
                self.close("FAILED", min(FAILURE_PATIENCE, patience(self.uri)))
        except TrackingError as refusal:
            if refusal is not error:
                log.warning("%s", refusal)

    def keep_unsent(self, status: str) -> str:
        """Saves the records that MLflow did not accept, and returns how to send them, or why they are lost."""
        try:
            path = self.save_unsent(status)
        except OSError as error:
            return f"the records of this run are lost, since no disk takes them ({error})"
        return f"the records are saved: send them later by `python -m blip.tracking {shlex.quote(str(path))}`"

    def save_unsent(self, status: str) -> Path:
        """Saves the records that MLflow did not accept to a file, and returns its path."""
        is_open = self.opened.done() and not self.opened.exception()
        values = {
            "uri": self.uri,
            "experiment": self.experiment,
            "name": self.name,
            "group": self.group,
            "key": self.key,
            "began": self.start_time,
            "mark": self.mark,
            "head": self.group_run,
            "given": self.opened.result() if is_open else self.given,
            "tags": self.start_tags,
            "status": status,
            "pending": list(self.outbox.pending),
        }
        return save_records(values)
