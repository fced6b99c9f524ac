"""One run's record: parameters, curves, artifacts and parents, written beside the work and never in its way."""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

from blip.tracking.server import WAY_OUT, TrackingError, client, experiment_id, probe, tracking_uri

log = logging.getLogger("blip")

WRITER = "mlflow-writer"
FLUSH_SECONDS = 2.0
BATCH = 100
"""As many parameters or tags as MLflow takes at once."""
VIEW = "?workflowType=machine_learning"
"""MLflow's pages show language models' traces first; so asked, they show runs, curves and models."""
LONGEST = 500
"""Characters of a value that every version of MLflow takes."""


class Run:
    """What a step says of itself. This one nobody hears: tracking is off, or another rank speaks."""

    id = ""
    url = ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Keeps parameters, nested ones under their path such as `optimizer.lr`, long values cut."""

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        """Keeps one point of each curve; returns at once and writes every two seconds."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Keeps words by which a run is found; a later one replaces an earlier one."""

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Copies a file into the run's artifacts."""

    def artifacts(self, path: str | Path, folder: str = "") -> None:
        """Copies what lies in a folder into the run's artifacts."""


class KeptRun(Run):
    """A run in MLflow. One thread opens it and writes, so that importing MLflow and its database cost the work nothing.

    What MLflow does not take for a while is kept and tried again; what it refuses is a TrackingError at the next call.
    """

    def __init__(self, uri: str, experiment: str, name: str, tags: Mapping[str, str], group: str = "", key: str = ""):
        self.uri, self.experiment, self.name, self.start_tags, self.group, self.key = uri, experiment, name, dict(tags), group, key
        self.head = self.place = ""
        self.began = int(time.time() * 1000)  # a short run may be over before the writer has imported MLflow
        self.monitor: Any = None
        self.known: dict[str, str] = {}
        self.pending: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.written = time.monotonic()
        self.warned = False
        self.writer = ThreadPoolExecutor(1, WRITER)
        self.opened: Future[str] = self.writer.submit(self.open)
        self.work: Future[Any] = self.opened
        # a process forked amid an import would wait for the import's lock for ever
        os.register_at_fork(before=lambda opened=self.opened: in_writer() or wait([opened]))

    @property
    def id(self) -> str:
        return self.opened.result()

    @property
    def url(self) -> str:
        """Where a browser shows the run, if MLflow is a server."""
        run = self.id  # once it is open, its experiment is known
        return f"{self.uri.rstrip('/')}/#/experiments/{self.place}/runs/{run}{VIEW}" if self.uri.startswith("http") else ""

    def params(self, values: Mapping[str, Any]) -> None:
        self.put(("params", (name, cut(value))) for name, value in flatten(values))

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self.put(("metrics", (name, float(value), now, step)) for name, value in values.items())

    def tags(self, values: Mapping[str, Any]) -> None:
        self.put(("tags", (name, cut(value))) for name, value in values.items())

    def artifact(self, path: str | Path, folder: str = "") -> None:
        self.check()
        with speaking_to(self.uri):
            client(self.uri).log_artifact(self.id, str(path), folder or None)

    def artifacts(self, path: str | Path, folder: str = "") -> None:
        self.check()
        with speaking_to(self.uri):
            client(self.uri).log_artifacts(self.id, str(path), folder or None)

    def put(self, entries: Iterator[tuple[str, tuple[Any, ...]]]) -> None:
        self.check()
        self.pending.extend(entries)
        if self.work.done() and time.monotonic() - self.written > FLUSH_SECONDS:
            self.written = time.monotonic()
            self.work = self.writer.submit(self.flush)

    def check(self) -> None:
        if self.work.done():
            self.work.result()

    def open(self) -> str:
        """Finds the run to go on with, or makes it, under its group's own run."""
        with speaking_to(self.uri):
            mlflow = client(self.uri)
            given = os.environ.get("MLFLOW_RUN_ID", "")
            experiment = "" if given else experiment_id(self.uri, self.experiment)
            tags = dict(self.start_tags)
            if not given and self.group:
                self.head = (
                    self.find(experiment, group=self.group)
                    or mlflow.create_run(experiment, self.began, {"group": self.group}, self.group).info.run_id
                )
                mlflow.update_run(self.head, status="RUNNING")
                tags["mlflow.parentRunId"] = self.head
            if not given and self.key:
                tags["key"] = self.key
                given = self.find(experiment, unfinished=True, key=self.key)
            if given:
                run = mlflow.get_run(given)
                self.known = dict(run.data.params)
                mlflow.update_run(given, status="RUNNING")
                self.pending.extend(("tags", (name, cut(value))) for name, value in tags.items())
            else:
                run = mlflow.create_run(experiment, self.began, {name: cut(value) for name, value in tags.items()}, self.name)
            self.place = run.info.experiment_id
            self.watch_system(run.info.run_id)
            return run.info.run_id

    def find(self, experiment: str, unfinished: bool = False, **tags: str) -> str:
        """The newest run with these tags, or an empty string."""
        terms = [f"tags.{name} = '{value}'" for name, value in tags.items()] + ["attributes.status != 'FINISHED'"] * unfinished
        found = client(self.uri).search_runs([experiment], " and ".join(terms), max_results=1, order_by=["attributes.start_time DESC"])
        return found[0].info.run_id if found else ""

    def watch_system(self, run_id: str) -> None:
        """Records processors, memory and GPUs, unless MLflow's own switch says not to."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(run_id)
            self.monitor.start()

    def flush(self) -> None:
        """Writes what waits. What MLflow refuses is dropped and raised; what it cannot take now stays."""
        from mlflow import MlflowException

        while self.pending:
            batch = [self.pending.popleft() for _ in range(min(BATCH, len(self.pending)))]
            try:
                self.send(batch)
            except MlflowException as e:
                if 400 <= e.get_http_status_code() < 500 and e.get_http_status_code() != 429:
                    raise TrackingError(f"MLflow at {self.uri} refuses a record: {e}") from e
                self.pending.extendleft(reversed(batch))
                if not self.warned:
                    log.warning("MLflow at %s takes no records now; they are kept and tried again (%s)", self.uri, e)
                self.warned = True
                return
            self.warned = False

    def send(self, batch: list[tuple[str, tuple[Any, ...]]]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*args) for kind, args in batch if kind == "metrics"]
        tags = [RunTag(*args) for kind, args in batch if kind == "tags"]
        params = []
        for name, value in (args for kind, args in batch if kind == "params"):
            if self.known.setdefault(name, value) == value:
                params.append(Param(name, value))
            else:  # MLflow lets a parameter be written once; a run that goes on may have another value
                tags.append(RunTag(f"changed.{name}", value))
        client(self.uri).log_batch(self.id, metrics, params, tags)

    def close(self, status: str) -> None:
        """Writes the rest and ends the run."""
        self.writer.submit(self.flush).result()
        self.writer.shutdown()
        if self.monitor:
            self.monitor.finish()
        with speaking_to(self.uri):
            for run in filter(None, (self.id, self.head)):
                client(self.uri).set_terminated(run, status)
        if self.pending:
            raise TrackingError(f"MLflow at {self.uri} did not take the last {len(self.pending)} records of run {self.id}: {WAY_OUT}")

    def fail(self, error: BaseException) -> None:
        """Ends the run as failed; what goes wrong here hides nothing of the error that led here."""
        try:
            self.tags({"error": f"{type(error).__name__}: {error}"})
            self.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except TrackingError as e:
            log.warning("%s", e)


def in_writer() -> bool:
    return threading.current_thread().name.startswith(WRITER)


@contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """Turns what MLflow raises into a TrackingError that names its address."""
    from mlflow import MlflowException

    try:
        yield
    except (MlflowException, OSError) as e:
        raise TrackingError(f"MLflow at {uri}: {e}") from e


@contextmanager
def start(
    name: str, experiment: str = "blip", parents: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None, key: str = ""
) -> Iterator[Run]:
    """Keeps a record of the work inside: as `FINISHED`, or as `FAILED` with the error as a tag.

    `parents` (name to digest, URI or run) become tags `parent.<name>`. An unfinished run with the same `key` is gone on with, so a step
    that was killed has one curve. `BLIP_GROUP` gathers runs under one of that name, where `MLFLOW_RUN_NAME` tells apart those that do the
    same, such as two trainings. `MLFLOW_RUN_ID` names a run that another system made.
    `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` leaves out the load of the machine. `BLIP_TRACKING=off`, and all ranks but the first, keep
    nothing.

    Raises TrackingError at once when MLflow is not there.
    """
    if os.environ.get("BLIP_TRACKING", "").lower() == "off" or os.environ.get("RANK", "0") != "0":
        yield Run()
        return
    uri = tracking_uri()
    probe(uri)
    marks = {**(tags or {}), **{f"parent.{parent}": value for parent, value in (parents or {}).items()}}
    name, experiment = os.environ.get("MLFLOW_RUN_NAME") or name, os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
    run = KeptRun(uri, experiment, name, marks, os.environ.get("BLIP_GROUP", ""), key)
    if uri.startswith("http"):
        run.opened.result()  # a server may refuse us, and says so only now
    try:
        yield run
    except BaseException as e:
        run.fail(e)
        raise
    run.close("FINISHED")


def flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters as pairs of path and value; an empty section is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def cut(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (list, tuple, Mapping)) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
