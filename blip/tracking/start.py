"""Starting a tracked run."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from blip.tracking.mlflow_run import MlflowRun
from blip.tracking.retries import patience
from blip.tracking.run import DataInput, Run
from blip.tracking.server import check_reachable, is_server, tracking_uri
from blip.tracking.tags import source_tags


@contextmanager
def start_run(
    name: str,
    experiment: str = "blip",
    parents: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    key: str = "",
    inputs: Sequence[DataInput] = (),
) -> Iterator[Run]:
    """Tracks the enclosed work as one run, which ends as `FINISHED`, `FAILED` or `KILLED` (by SIGTERM or Ctrl-C).

    `parents` (name to digest, URI or run) become tags `parent.<name>`. An unfinished run with the same `key` is
    resumed, so that a step that was killed has one curve.

    Variables: `BLIP_GROUP` is the name of the parent run. `MLFLOW_RUN_NAME` replaces `name`, which distinguishes equal
    steps of a group, such as two trainings; `MLFLOW_EXPERIMENT_NAME` replaces `experiment`. `MLFLOW_RUN_ID` is a run
    that another system created. `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` turns off the metrics of the machine.
    `BLIP_TRACKING=off` turns tracking off, as on every rank but 0. At the end, a server that is unavailable is waited
    for up to `BLIP_TRACKING_PATIENCE` seconds (900); the records that remain are saved to a file, and the run counts
    as finished.

    Raises TrackingError at once if MLflow is unavailable or refuses the experiment.
    """
    if os.environ.get("BLIP_TRACKING", "").lower() == "off" or os.environ.get("RANK", "0") != "0":
        yield Run()
        return
    uri = tracking_uri()
    patience(uri)  # a wrong value is an error before the work, not after it
    check_reachable(uri)
    all_tags = dict(tags or {})
    for parent, value in (parents or {}).items():
        all_tags[f"parent.{parent}"] = value
    all_tags |= source_tags(all_tags)
    run = MlflowRun(
        uri,
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment),
        name=os.environ.get("MLFLOW_RUN_NAME") or name,
        tags=all_tags,
        group=os.environ.get("BLIP_GROUP", ""),
        key=key,
        given=os.environ.get("MLFLOW_RUN_ID", ""),
    )
    with exit_on_sigterm():
        try:
            if is_server(uri):
                run.wait_for_attempt()  # a refusal by the server is raised here
            run.inputs(inputs)
            yield run
        except BaseException as error:
            run.fail(error)
            raise
        run.close("FINISHED")


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turns the first SIGTERM into SystemExit, so that the enclosed code can clean up.

    Does nothing outside the main thread, which alone receives signals, and where a handler is installed.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
