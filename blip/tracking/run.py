"""One run's record: parameters, curves, data sets, artifacts and parents, written beside the work and never in its way."""

import hashlib
import json
import logging
import math
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, SupportsFloat

from blip.redaction import redact
from blip.tracking import left_behind
from blip.tracking.outage import LOCAL_FAULTS, AwayError, is_passing, patience, patiently
from blip.tracking.server import TrackingError, client, experiment_id, is_server, probe, tracking_uri

log = logging.getLogger("blip")

WRITER = "mlflow-writer"
FLUSH_SECONDS = 2.0
BEAT_SECONDS = 60.0
"""A run says so often that it goes on."""
LAST_WORDS = 5.0
"""Seconds for MLflow to take the end of a run that is killed; who kills it does not wait long."""
FAILURE_PATIENCE = 30.0
"""The same for a run that failed: people want to know the error."""
BATCH = 100
"""As many parameters or tags as MLflow takes at once."""
VIEW = "?workflowType=machine_learning"
"""MLflow's pages show language models' traces first; so asked, they show runs, curves and models."""
LONGEST = 500
"""Characters of a value that every version of MLflow takes."""
DIGEST = 36
"""Characters of a data set's digest that MLflow takes."""
UNSENT = Path("runs/unsent")
"""Where records lie that MLflow did not take in time."""

Entry = tuple[str, tuple[Any, ...]]
"""A kind of record and what it says."""


class DataInput(NamedTuple):
    """A data set that a run works on, as MLflow's column *Dataset* shows it."""

    name: str
    digest: str
    source: str
    """The URI of its shards."""
    context: str
    """What it is for, such as `training`."""
    samples: int


class Run:
    """A run of which no record is kept: tracking is off, or this is not rank 0."""

    id = ""
    url = ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Keeps parameters, nested ones under their path such as `optimizer.lr`, long values cut."""

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        """Keeps one point of each curve; returns at once and writes every two seconds."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Keeps words by which a run is found; a later one replaces an earlier one."""

    def inputs(self, data: Iterable[DataInput]) -> None:
        """Keeps the data sets that the run works on."""

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Copies a file into the run's artifacts; it must stay as it is until the run ends."""

    def artifacts(self, path: str | Path, folder: str = "") -> None:
        """Copies what lies in a folder into the run's artifacts, as `artifact`."""


class KeptRun(Run):
    """A run in MLflow. One thread opens it and writes, so that importing MLflow and its database cost the work nothing.

    What MLflow does not take for a while is kept and tried again, at the end for as long as `tracking.outage` says, and then left in a
    file to be sent later. What it refuses is a TrackingError at the next call.
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
        self.uri, self.experiment, self.name, self.group, self.key, self.given = (
            uri,
            experiment,
            name,
            group,
            key,
            given,
        )
        self.start_tags = dict(tags)
        self.head = self.place = ""
        self.began = int(time.time() * 1000)  # a short run may be over before the writer has imported MLflow
        self.mark = uuid.uuid4().hex  # finds the run again if the answer to its making was lost
        self.monitor: Any = None
        self.known: dict[str, str] = {}
        self.pending: deque[Entry] = deque()
        self.written = time.monotonic()
        self.warned = False
        self.refused: TrackingError | None = None
        self.deadline = math.inf
        self.away, self.over = Event(), Event()
        self.writer = ThreadPoolExecutor(1, WRITER)
        self.opened: Future[str] = self.writer.submit(self.open)
        self.work: Future[Any] = self.opened
        # a process forked amid an import would wait for the import's lock for ever
        os.register_at_fork(before=lambda: in_writer() or self.wait_for_attempt())
        self.heart = Thread(target=self.beat, name="mlflow-heartbeat", daemon=True)
        self.heart.start()

    @property
    def id(self) -> str:
        return self.opened.result()

    @property
    def url(self) -> str:
        """Where a browser shows the run, if MLflow is a server; empty while that is away."""
        if not is_server(self.uri) or not self.opened.done() or self.opened.exception():
            return ""
        return f"{self.uri.rstrip('/')}/#/experiments/{self.place}/runs/{self.id}{VIEW}"

    def params(self, values: Mapping[str, Any]) -> None:
        self.put(("params", (name, cut(value))) for name, value in flatten(values))

    def metrics(self, values: Mapping[str, SupportsFloat], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self.put(("metrics", (name, float(value), now, step)) for name, value in values.items())

    def tags(self, values: Mapping[str, Any]) -> None:
        self.put(("tags", (name, cut(value))) for name, value in values.items())

    def inputs(self, data: Iterable[DataInput]) -> None:
        self.put(("inputs", tuple(one)) for one in data)

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
        self.pending.extend(entries)
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.write_soon()

    def write_soon(self) -> None:
        if self.work.done():
            self.written = time.monotonic()
            self.work = self.writer.submit(self.write)

    def check(self) -> None:
        """Raises what MLflow refused."""
        if self.opened.done():
            self.opened.result()
        if self.refused:
            raise self.refused

    def beat(self) -> None:
        """Says now and then that the run goes on, until its end."""
        while not self.over.wait(BEAT_SECONDS):
            if self.work.done():
                self.pending.append(("tags", (left_behind.ALIVE, str(int(time.time())))))
                self.write_soon()

    def wait_for_attempt(self) -> None:
        """Waits until MLflow is imported and was asked once."""
        while not self.opened.done() and not self.away.is_set():
            wait([self.opened], 0.05)

    def patiently(self, request: Callable[[], Any]) -> Any:
        return patiently(self.uri, request, lambda: self.deadline)

    def open(self) -> str:
        """Finds the run to go on with, or makes it, under its group's own run."""

        def attempt() -> str:
            try:
                return self.find_or_make(again=self.away.is_set())
            except Exception as e:
                if is_passing(e):
                    self.away.set()
                raise

        return self.patiently(attempt)

    def find_or_make(self, again: bool) -> str:
        mlflow = client(self.uri)
        given, experiment = self.given, ""
        tags = {**self.start_tags, **left_behind.marks()}
        if not given:
            experiment = experiment_id(self.uri, self.experiment)
            if self.group:
                self.head = self.find_group(experiment)
                tags[left_behind.PARENT] = self.head
            if self.key:
                tags |= {"key": self.key, "key.id": short_digest(self.key)}
                given = self.find(experiment, "key.id", short_digest(self.key), unfinished=True)
            if again and not given:
                given = self.find(experiment, "mark", self.mark)
        tags = {name: cut(value) for name, value in tags.items()}
        if given:
            run = mlflow.get_run(given)
            self.known = dict(run.data.params)
            mlflow.update_run(given, status="RUNNING")
            self.pending.extend(("tags", entry) for entry in tags.items())
        else:
            run = mlflow.create_run(experiment, self.began, {**tags, "mark": self.mark}, self.name)
        self.place = run.info.experiment_id
        if experiment:
            step = os.environ.get("MLFLOW_RUN_NAME", "")
            left_behind.close_left_behind(mlflow, experiment, self.head, step, run.info.run_id)
        self.watch_system(run.info.run_id)
        return run.info.run_id

    def find_group(self, experiment: str) -> str:
        """Returns the run that gathers those of the group, and has it go on."""
        mlflow, mark = client(self.uri), short_digest(self.group)
        found = self.find(experiment, "group.id", mark)
        if not found:
            tags = {"group": cut(self.group), "group.id": mark, **source(self.start_tags)}
            found = mlflow.create_run(experiment, self.began, tags, cut(self.group)).info.run_id
        mlflow.update_run(found, status="RUNNING")
        return found

    def find(self, experiment: str, tag: str, value: str, unfinished: bool = False) -> str:
        """Returns the newest run with this tag, whose value is letters and digits, or an empty string."""
        wanted = f"tags.`{tag}` = '{value}'" + " and attributes.status != 'FINISHED'" * unfinished
        found = client(self.uri).search_runs(
            [experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return found[0].info.run_id if found else ""

    def watch_system(self, run_id: str) -> None:
        """Records processors, memory and GPUs, unless MLflow's own switch says not to."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(run_id)
            self.monitor.start()

    def write(self) -> None:
        """Writes what waits; what MLflow cannot take now stays, and what it refuses is raised at the next call."""
        try:
            patiently(self.uri, self.flush, lambda: 0.0)
        except AwayError as e:
            if not self.warned:
                log.warning("MLflow at %s takes no records now; they are kept and tried again (%s)", self.uri, e)
            self.warned = True
        else:
            self.warned = False

    def flush(self) -> None:
        """Writes what waits; what MLflow refuses is dropped. Raises what says that MLflow is away; the rest waits then."""
        from mlflow import MlflowException

        while self.pending:
            batch = self.take()
            try:
                self.send(batch)
            except MlflowException as e:
                status = e.get_http_status_code()
                if status == 429 or status >= 500:
                    self.pending.extendleft(reversed(batch))
                    raise
                if len(batch) > 1:
                    self.send_apart(batch)
                else:
                    self.refuse(batch[0], e)
            except LOCAL_FAULTS as e:
                self.refuse(batch[0], e)
            except BaseException:
                self.pending.extendleft(reversed(batch))
                raise

    def take(self) -> list[Entry]:
        """Returns the records that are written together next."""
        batch = [self.pending.popleft()]
        while (
            self.pending and len(batch) < BATCH and {batch[0][0], self.pending[0][0]} <= {"metrics", "params", "tags"}
        ):
            batch.append(self.pending.popleft())
        return batch

    def send_apart(self, batch: list[Entry]) -> None:
        """Writes a batch of which MLflow refused a part one by one."""
        rest, self.pending = self.pending, deque()
        try:
            for entry in batch:
                self.pending.append(entry)
                self.flush()
        finally:
            self.pending.extend(rest)

    def refuse(self, entry: Entry, error: Exception) -> None:
        kind, values = entry
        self.refused = self.refused or TrackingError(
            f"MLflow at {self.uri} refuses a record ({kind} {values[0]!r}): {error}"
        )

    def send(self, batch: list[Entry]) -> None:
        mlflow, (kind, values) = client(self.uri), batch[0]
        match kind:
            case "inputs":
                mlflow.log_inputs(self.id, [dataset(DataInput(*values))])
            case "artifact":
                mlflow.log_artifact(self.id, values[0], values[1] or None)
            case "artifacts":
                mlflow.log_artifacts(self.id, values[0], values[1] or None)
            case _:
                self.send_values(batch)

    def send_values(self, batch: list[Entry]) -> None:
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

    def close(self, status: str, seconds: float | None = None) -> None:
        """Writes the rest and ends the run.

        Waits so many seconds for MLflow while that is away (by default `tracking.outage.patience`), then leaves what was not written in a
        file and says how to send it. Raises TrackingError for what MLflow refused.
        """
        try:
            self.hand_over(status, patience(self.uri) if seconds is None else seconds)
        except AwayError as e:
            path = self.keep(status)
            log.warning(
                "%s; what it did not take is kept: send it later by `python -m blip.tracking %s`",
                e,
                shlex.quote(str(path)),
            )
        except (KeyboardInterrupt, SystemExit):
            self.keep(status)
            raise
        if self.refused:
            raise self.refused

    def hand_over(self, status: str, seconds: float) -> None:
        """Writes the rest, ends the run and this object's threads. Raises AwayError where MLflow does not take it in so many seconds."""
        self.deadline = time.monotonic() + seconds
        self.over.set()
        try:
            self.writer.submit(self.finish, status).result()
        finally:
            self.deadline = 0.0  # whoever is ended while it waits does not wait longer
            self.writer.shutdown()
            self.heart.join()

    def finish(self, status: str) -> None:
        if self.opened.exception() and self.head:
            self.patiently(lambda: client(self.uri).set_terminated(self.head, "FAILED"))
        run = self.opened.result()
        if self.monitor:
            self.monitor.finish()
        self.patiently(self.flush)
        ending = "FAILED" if self.refused and status == "FINISHED" else status
        self.patiently(lambda: self.end(run, ending))

    def end(self, run: str, status: str) -> None:
        mlflow = client(self.uri)
        mlflow.set_terminated(run, status)
        if self.head and not left_behind.has_running(mlflow, self.place, self.head, run):
            mlflow.set_terminated(self.head, status)

    def fail(self, error: BaseException) -> None:
        """Ends the run as failed or killed; what goes wrong here hides nothing of the error that led here."""
        killed = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and is_signal(error.code))
        self.pending.append(("tags", ("error", cut(redact(f"{type(error).__name__}: {error}")))))
        try:
            self.close(
                "KILLED" if killed else "FAILED", LAST_WORDS if killed else min(FAILURE_PATIENCE, patience(self.uri))
            )
        except TrackingError as e:
            if e is not error:
                log.warning("%s", e)

    def keep(self, status: str) -> Path:
        """Writes what MLflow did not take to a file, and returns its path."""
        given = self.opened.result() if self.opened.done() and not self.opened.exception() else self.given
        names = ("uri", "experiment", "name", "group", "key", "began", "mark", "head")
        values = {name: getattr(self, name) for name in names}
        values |= {"given": given, "tags": self.start_tags, "status": status, "pending": list(self.pending)}
        path = unsent_folder() / f"{uuid.uuid4().hex[:12]}.json"
        path.write_text(json.dumps(values, indent=1))
        return path.resolve()


def send(path: Path) -> None:
    """Sends the records that a run left in a file, and deletes it. Raises TrackingError while MLflow is away, and for what it refuses."""
    values = json.loads(path.read_text())
    uri = tracking_uri() if "MLFLOW_TRACKING_URI" in os.environ else values["uri"]
    probe(uri)
    places = values["experiment"], values["name"], values["tags"], values["group"], values["key"], values["given"]
    run = KeptRun(uri, *places)
    run.began, run.mark = values["began"], values["mark"]
    if values["given"]:  # else it is found as the run is opened
        run.head = values["head"]
    run.pending.extend((kind, tuple(entry)) for kind, entry in values["pending"])
    run.hand_over(values["status"], patience(uri))
    path.unlink()
    if run.refused:
        raise run.refused


def unsent_folder() -> Path:
    """Returns a folder that can be written: beside the runs, or among temporary files."""
    private = Path(tempfile.gettempdir(), f"blip-unsent-{os.getuid()}")
    for folder in (UNSENT, private):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="blip-unsent-"))


def dataset(data: DataInput) -> Any:
    """Returns a data set as MLflow keeps it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "s3" if data.source.startswith("s3://") else "local"
    where, profile = (
        json.dumps({"uri": redact(data.source)}),
        json.dumps({"samples": data.samples, "sha256": data.digest}),
    )
    kept = Dataset(data.name, data.digest[:DIGEST], kind, where, profile=profile)
    return DatasetInput(kept, [InputTag("mlflow.data.context", data.context)])


def source(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags of MLflow's column *Source*: the command and the code's revision."""
    found = {"mlflow.source.name": cut(redact(command())), "mlflow.source.type": "LOCAL"}
    if revision := tags.get("revision"):
        found["mlflow.source.git.commit"] = cut(revision)
    return found


def command() -> str:
    """Returns what this process was started with, as a person would write it."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if "--function_to_execute" in arguments:  # a step of a pipeline, whose further arguments are a page of JSON
        return f"component {arguments[arguments.index('--function_to_execute') + 1]}"
    if path.name == "cli.py" and path.parent.name == "blip":
        return shlex.join(["blip", *arguments])
    return shlex.join([path.name, *arguments])


def is_signal(code: object) -> bool:
    """Whether an exit code says that a signal ended the process."""
    return isinstance(code, int) and code > 128


def short_digest(text: str) -> str:
    """Returns letters and digits that stand for a text: MLflow's language of filters has no way to write every text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def in_writer() -> bool:
    return threading.current_thread().name.startswith(WRITER)


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM an exception where it would end the process on the spot, once: what is inside can end its run."""
    in_main = threading.current_thread() is threading.main_thread()  # no other thread hears signals
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def start(
    name: str,
    experiment: str = "blip",
    parents: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    key: str = "",
    inputs: Sequence[DataInput] = (),
) -> Iterator[Run]:
    """Keeps a record of the work inside: as `FINISHED`, as `FAILED` with the error as a tag, or as `KILLED` by SIGTERM or Ctrl-C.

    `parents` (name to digest, URI or run) become tags `parent.<name>`. An unfinished run with the same `key` is gone on with, so a step
    that was killed has one curve. `BLIP_GROUP` gathers runs under one of that name, where `MLFLOW_RUN_NAME` tells apart those that do the
    same, such as two trainings. `MLFLOW_RUN_ID` names a run that another system made.
    `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` leaves out the load of the machine. `BLIP_TRACKING=off`, and all ranks but the first, keep
    nothing. A server that goes away later is waited for at the end, `BLIP_TRACKING_PATIENCE` seconds (900); what it does not take by then
    is left in a file, and the work counts as done.

    Raises TrackingError at once when MLflow is not there, and where it refuses the experiment.
    """
    if os.environ.get("BLIP_TRACKING", "").lower() == "off" or os.environ.get("RANK", "0") != "0":
        yield Run()
        return
    uri = tracking_uri()
    probe(uri)
    marks = {**(tags or {}), **{f"parent.{parent}": value for parent, value in (parents or {}).items()}}
    marks |= source(marks)
    name, experiment = os.environ.get("MLFLOW_RUN_NAME") or name, os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
    given = os.environ.get("MLFLOW_RUN_ID", "")
    run = KeptRun(uri, experiment, name, marks, os.environ.get("BLIP_GROUP", ""), key, given)
    with terminable():
        try:
            if is_server(uri):
                run.wait_for_attempt()  # a server may refuse us, and says so only now
            run.inputs(inputs)
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
    text = text.encode(errors="replace").decode()  # a name that is not UTF-8 would be refused
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
