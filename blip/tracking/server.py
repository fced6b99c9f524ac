"""The address of MLflow, its client, and a check that it answers."""

import fcntl
import os
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import urlopen

from blip.redaction import redact, split_userinfo

if TYPE_CHECKING:  # importing MLflow takes a second, and most of this library does without it
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

SQLITE = "sqlite:///"
WAY_OUT = "correct MLFLOW_TRACKING_URI, or set BLIP_TRACKING=off to keep no record"
ROOM, ROOM_OF_NEW = 1 << 16, 1 << 22
"""Bytes that must be free beside a SQLite file that exists, and for a new one."""
MAX_MESSAGE_LENGTH = 600
"""Characters of an error of MLflow; a proxy's answer may be a whole page."""


class TrackingError(RuntimeError):
    """MLflow is unavailable or refuses a request.

    The message is one line: the address without secrets, the reason and the way out.
    """

    def __init__(self, message: str):
        line = " ".join(redact(message).split())
        super().__init__(line if len(line) <= MAX_MESSAGE_LENGTH else f"{line[: MAX_MESSAGE_LENGTH - 1]}…")


class SettingError(TrackingError):
    """An address or another setting that cannot be used, so that trying again cannot help."""


def tracking_uri(root: str | Path = "runs") -> str:
    """Returns the address of MLflow: the value of `MLFLOW_TRACKING_URI`, or a SQLite file in `root`.

    The address of a server is returned without user and password, which `mlflow_client` passes to MLflow separately.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path(root).resolve()}/mlflow.db"
    return split_userinfo(given)[0] if is_server(given) else given


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def artifact_folder(uri: str) -> Path | None:
    """Returns the folder of artifacts beside a SQLite file, or None for a server, which has its own."""
    return Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" if uri.startswith(SQLITE) else None


def check_reachable(uri: str) -> None:
    """Raises TrackingError if MLflow does not answer within 10 seconds; MLflow's client would retry for minutes."""
    if is_server(uri):
        try:
            urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
        except HTTPError:
            return  # it answers; a refusal concerns the later requests
        except (HTTPException, ValueError) as e:
            raise SettingError(f"MLflow at {uri}: this is not an address ({e}): {WAY_OUT}") from None
        except OSError as e:
            raise TrackingError(f"MLflow at {uri} does not answer ({e}): start it, {WAY_OUT}") from None
    elif uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        check_file_address(uri)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent) as probe:  # MLflow tries for minutes on a full disk
                probe.write(bytes(ROOM if path.exists() else ROOM_OF_NEW))
                probe.flush()
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA schema_version")
            connection.close()
        except (OSError, sqlite3.Error) as e:
            raise TrackingError(
                f"MLflow's file {path} cannot be opened ({e}): make it writable, with room on its disk, {WAY_OUT}"
            ) from None


def check_file_address(uri: str) -> None:
    """Raises SettingError if SQLAlchemy, which MLflow uses, reads another path from the address of a SQLite file."""
    path = uri.removeprefix(SQLITE)
    if uri.startswith(SQLITE) and ("?" in path or unquote(path) != path):
        raise SettingError(
            f"MLflow's file {path}: its address must not hold '?', nor '%' with two hexadecimal digits after it, which "
            f"stand for another character: use another folder, or {WAY_OUT}"
        )


REQUEST_RETRIES_VARIABLE, REQUEST_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
"""By default MLflow's client retries for minutes, uninterruptibly; `tracking.retries` retries on top of it."""


@cache
def mlflow_client(uri: str) -> "MlflowClient":
    """Returns MLflow's client for an address, and makes the address the default of this process."""
    set_credentials()
    os.environ.setdefault(REQUEST_RETRIES_VARIABLE, REQUEST_RETRIES)
    import mlflow

    if uri.startswith(SQLITE):
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "connect", use_write_ahead_log)
        create_database(Path(uri.removeprefix(SQLITE)))
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def set_credentials() -> None:
    """Moves user and password of `MLFLOW_TRACKING_URI` to MLflow's variables, so that no address holds them."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if is_server(given):
        _, user, password = split_userinfo(given)
        if user:
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)


def create_database(path: Path) -> None:
    """Creates MLflow's database under another name and renames it, so that it appears complete.

    MLflow creates its tables one by one and refuses a file that has only some of them: it could not be opened again
    after a kill in these seconds.
    """
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if count_tables(path):
            return
        from mlflow import MlflowClient

        aside = path.with_name(f"{path.name}.aside")
        whole = path.with_name(f"{path.name}.whole")
        for stale in path.parent.glob(f"{path.name}.[aw]*"):  # files of a killed process
            stale.unlink()
        MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
        with closing(sqlite3.connect(aside)) as connection:
            connection.execute("VACUUM INTO ?", (str(whole),))
        whole.replace(path)
        for stale in path.parent.glob(f"{path.name}.aside*"):
            stale.unlink()


def count_tables(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def use_write_ahead_log(connection: object, _: object) -> None:
    """Turns on SQLite's write-ahead log: a new database takes 3 seconds rather than 9, and readers block no writer."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def experiment_id(uri: str, name: str) -> str:
    """Returns the id of the experiment of that name, created if there is none; `MLFLOW_EXPERIMENT_ID` overrides it.

    Raises TrackingError for a deleted experiment, whose name MLflow reserves and to which it adds no runs.
    """
    from mlflow import MlflowException

    mlflow = mlflow_client(uri)
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return require_active(uri, mlflow.get_experiment(given))
    if found := mlflow.get_experiment_by_name(name):
        return require_active(uri, found)
    folder = artifact_folder(uri)
    try:
        return mlflow.create_experiment(name, folder.as_uri() if folder else None)
    except MlflowException:  # another process may have created it
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return require_active(uri, found)


def require_active(uri: str, experiment: "Experiment") -> str:
    if experiment.lifecycle_stage == "active":
        return experiment.experiment_id
    restore = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
    raise TrackingError(
        f"MLflow at {uri}: experiment {experiment.name!r} is deleted; restore it ({restore}), "
        f"or name another one by MLFLOW_EXPERIMENT_NAME"
    )
