"""How this project waits for MLflow while it is away."""

import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from blip.tracking.server import TrackingError, is_server

T = TypeVar("T")
log = logging.getLogger("blip")

PATIENCE = 900.0
"""Seconds that a server may be away at the end of a step; `BLIP_TRACKING_PATIENCE` says otherwise."""
PATIENCE_WITH_A_FILE = 30.0
"""Seconds that a SQLite file may be locked."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two attempts; each pause is twice as long as the one before it."""


LOOK = 0.1
LOCAL_FAULTS = (FileNotFoundError, PermissionError, IsADirectoryError)
"""What no waiting mends."""


class AwayError(TrackingError):
    """MLflow did not answer for longer than this process waits."""


def patience(uri: str) -> float:
    """Returns the seconds to wait for MLflow at this address."""
    if not is_server(uri):
        return PATIENCE_WITH_A_FILE
    asked = os.environ.get("BLIP_TRACKING_PATIENCE", str(PATIENCE))
    try:
        return float(asked)
    except ValueError:
        raise TrackingError(f"BLIP_TRACKING_PATIENCE={asked} must be a number of seconds") from None


def is_passing(error: Exception) -> bool:
    """Whether what MLflow raised may be gone the next time: it was away, busy or broken. What it refused stays refused."""
    from mlflow import MlflowException

    if isinstance(error, TrackingError):
        return isinstance(error, AwayError)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status == 429 or status >= 500
    # artifacts go through other libraries, each with exceptions of its own; files are this machine's
    return not isinstance(error, LOCAL_FAULTS)


def patiently(uri: str, request: Callable[[], T], until: Callable[[], float]) -> T:
    """Returns what a request to MLflow returns, repeated while MLflow is away.

    `until` returns the moment of `time.monotonic` at which it gives up; it is asked again and again, for it may come nearer meanwhile.
    Raises AwayError then, and TrackingError for what MLflow refuses.
    """
    pause, warned = FIRST_PAUSE, False
    while True:
        try:
            return request()
        except TrackingError:
            raise
        except Exception as e:
            if not is_passing(e):
                raise TrackingError(f"MLflow at {uri} refuses it: {e}") from None
            if time.monotonic() >= until():
                raise AwayError(f"MLflow at {uri} is away: {e}") from None
            if not warned:
                log.warning(
                    "MLflow at %s takes no records now; they are kept and tried again (%s)", uri, TrackingError(str(e))
                )
                warned = True
        wake = time.monotonic() + pause
        while time.monotonic() < min(wake, until()):
            time.sleep(LOOK)
        pause = min(2 * pause, LONGEST_PAUSE)
