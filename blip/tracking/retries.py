"""Retries of requests to MLflow while it is unavailable."""

import logging
import math
import os
import time
from collections.abc import Callable
from typing import TypeVar

from blip.tracking.server import SettingError, TrackingError, is_server

T = TypeVar("T")
log = logging.getLogger("blip")

SERVER_PATIENCE = 900.0
"""Seconds that a server may be unavailable at the end of a step; `BLIP_TRACKING_PATIENCE` overrides it."""
FILE_PATIENCE = 30.0
"""Seconds that a SQLite file may be locked."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two attempts; each pause is twice as long as the previous one."""
DEADLINE_POLL = 0.1
"""Seconds between two checks of the deadline during a pause."""
LOCAL_FAULTS = (FileNotFoundError, PermissionError, IsADirectoryError)
"""Errors of this machine's files, which no retry resolves."""


class UnavailableError(TrackingError):
    """MLflow did not answer before the deadline."""


def patience(uri: str) -> float:
    """Returns the seconds to wait for MLflow at this address. Raises SettingError if the variable is no such number."""
    if not is_server(uri):
        return FILE_PATIENCE
    given = os.environ.get("BLIP_TRACKING_PATIENCE") or str(SERVER_PATIENCE)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SettingError(f"BLIP_TRACKING_PATIENCE={given} must be a number of seconds, 0 or more")
    return seconds


def is_transient_error(error: Exception) -> bool:
    """Whether a retry may succeed: MLflow was unavailable, overloaded or failed. A refusal is permanent."""
    from mlflow import MlflowException

    if isinstance(error, TrackingError):
        return isinstance(error, UnavailableError)
    if isinstance(error, MlflowException):
        return is_transient_status(error.get_http_status_code())
    # artifact stores raise exceptions of their own libraries; only errors of local files are permanent
    return not isinstance(error, LOCAL_FAULTS)


def is_transient_status(status: int) -> bool:
    """Whether an HTTP status allows a retry: too many requests, or an error of the server."""
    return status == 429 or status >= 500


def with_retries(uri: str, request: Callable[[], T], deadline: Callable[[], float]) -> T:
    """Returns the result of a request to MLflow, which is retried while MLflow is unavailable.

    `deadline` returns the time on `time.monotonic` at which to give up; it is called repeatedly, since another thread
    may bring it forward. Raises UnavailableError at the deadline, and TrackingError if MLflow refuses the request.
    """
    pause, warned = FIRST_PAUSE, False
    while True:
        try:
            return request()
        except TrackingError:
            raise
        except Exception as error:
            if not is_transient_error(error):
                raise TrackingError(f"MLflow at {uri} refuses the request: {error}") from None
            if time.monotonic() >= deadline():
                raise UnavailableError(f"MLflow at {uri} is unavailable: {error}") from None
            if not warned:
                reason = TrackingError(str(error))
                log.warning("MLflow at %s is unavailable; records are kept and sent later (%s)", uri, reason)
                warned = True
        wake = time.monotonic() + pause
        while time.monotonic() < min(wake, deadline()):
            time.sleep(DEADLINE_POLL)
        pause = min(2 * pause, LONGEST_PAUSE)
