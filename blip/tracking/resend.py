"""Sending the records that a run saved to a file because MLflow was unavailable."""

import json
import os
from pathlib import Path

from blip.tracking.mlflow_run import MlflowRun
from blip.tracking.retries import patience
from blip.tracking.server import check_reachable, tracking_uri


def send_unsent(path: Path) -> None:
    """Sends the records in a file and deletes it. Raises TrackingError if MLflow is unavailable or refuses a record."""
    values = json.loads(path.read_text(encoding="utf-8"))
    uri = tracking_uri() if "MLFLOW_TRACKING_URI" in os.environ else values["uri"]
    check_reachable(uri)
    run = MlflowRun(
        uri, values["experiment"], values["name"], values["tags"], values["group"], values["key"], values["given"]
    )
    run.start_time = values["began"]
    run.mark = values["mark"]
    if values["given"]:  # otherwise opening the run finds its group
        run.group_run = values["head"]
    run.outbox.put((kind, tuple(entry)) for kind, entry in values["pending"])
    run.hand_over(values["status"], patience(uri))
    path.unlink()
    if run.outbox.refused:
        raise run.outbox.refused
