"""Where MLflow is, and whether it answers."""

import fcntl
import os
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import urlopen

from blip.redaction import redact, split_userinfo

if TYPE_CHECKING:  # MLflow takes a second to import, and most of this library never needs it
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

SQLITE = "sqlite:///"
WAY_OUT = "correct MLFLOW_TRACKING_URI, or set BLIP_TRACKING=off to keep no record"
LONGEST_MESSAGE = 600
"""Characters of what MLflow says; a proxy's answer may be a whole page."""


class TrackingError(RuntimeError):
    """MLflow cannot keep the record; the message names its address, the reason and the way out, in one line and without secrets."""

    def __init__(self, message: str):
        line = " ".join(redact(message).split())
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 1]}…")


def tracking_uri(root: str | Path = "runs") -> str:
    """Returns the address of MLflow: what `MLFLOW_TRACKING_URI` says, or a SQLite file in `root`.

    A user and a password in the address of a server are left out: `client` hands them to MLflow apart.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path(root).resolve()}/mlflow.db"
    return split_userinfo(given)[0] if is_server(given) else given


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def artifact_folder(uri: str) -> Path | None:
    """Where artifacts lie when MLflow is a SQLite file: beside it; a server has a place of its own."""
    return Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" if uri.startswith(SQLITE) else None


def probe(uri: str) -> None:
    """Asks whether MLflow is there, in seconds: its own client would try for minutes. Raises TrackingError."""
    if is_server(uri):
        try:
            urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
        except HTTPError:
            return  # it answers; what it thinks of us it says to the client
        except OSError as e:
            raise TrackingError(f"MLflow at {uri} does not answer ({e}): start it, {WAY_OUT}") from None
    elif uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        if "?" in uri:
            raise TrackingError(
                f"MLflow's file {path}: SQLite's address takes no '?': use another folder, or {WAY_OUT}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA schema_version")
            connection.close()
        except (OSError, sqlite3.Error) as e:
            raise TrackingError(f"MLflow's file {path} cannot be opened ({e}): make it writable, {WAY_OUT}") from None


QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's own retries take minutes, in which nothing can be said or ended; `tracking.outage` tries again on top of them."""


@cache
def client(uri: str) -> "MlflowClient":
    """Returns MLflow's client for an address, which becomes the address of this process."""
    sign_in()
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    import mlflow

    if uri.startswith(SQLITE):
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "connect", write_ahead)
        make_database(Path(uri.removeprefix(SQLITE)))
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def sign_in() -> None:
    """Hands user and password of `MLFLOW_TRACKING_URI` to MLflow by variables of their own, so that no address holds them."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if is_server(given):
        _, user, password = split_userinfo(given)
        if user:
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)


def make_database(path: Path) -> None:
    """Makes MLflow's tables aside and puts them in place whole.

    MLflow makes them one by one, refuses a file that holds some of them, and so would never open again after a kill in these seconds.
    """
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tables(path):
            return
        from mlflow import MlflowClient

        aside, whole = path.with_name(f"{path.name}.aside"), path.with_name(f"{path.name}.whole")
        for left in path.parent.glob(f"{path.name}.[aw]*"):  # by one who was killed
            left.unlink()
        MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
        with closing(sqlite3.connect(aside)) as connection:
            connection.execute("VACUUM INTO ?", (str(whole),))
        whole.replace(path)
        for left in path.parent.glob(f"{path.name}.aside*"):
            left.unlink()


def tables(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def write_ahead(connection: object, _: object) -> None:
    """Spares SQLite most of its waits for the disk: a new database takes 3 seconds rather than 9, and a reader never blocks a run."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def experiment_id(uri: str, name: str) -> str:
    """Returns the experiment of that name, made if there is none; `MLFLOW_EXPERIMENT_ID` goes before.

    Raises TrackingError for an experiment that was deleted: MLflow keeps its name, and takes no runs for it.
    """
    from mlflow import MlflowException

    mlflow = client(uri)
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return require_active(uri, mlflow.get_experiment(given))
    if found := mlflow.get_experiment_by_name(name):
        return require_active(uri, found)
    folder = artifact_folder(uri)
    try:
        return mlflow.create_experiment(name, folder and folder.as_uri())
    except MlflowException:  # another process was first
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return require_active(uri, found)


def require_active(uri: str, experiment: "Experiment") -> str:
    if experiment.lifecycle_stage == "active":
        return experiment.experiment_id
    restore = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
    raise TrackingError(
        f"MLflow at {uri}: experiment {experiment.name!r} is deleted; restore it ({restore}), or name another one by MLFLOW_EXPERIMENT_NAME"
    )
