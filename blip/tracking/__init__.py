"""Experiment tracking and the model registry, in MLflow: by default a SQLite file and a folder of artifacts."""

from blip.tracking.registry import Champion, champion, promote, register_model
from blip.tracking.run import DataInput, Run
from blip.tracking.server import TrackingError, tracking_uri
from blip.tracking.start import start_run

__all__ = [
    "Champion",
    "DataInput",
    "Run",
    "TrackingError",
    "champion",
    "promote",
    "register_model",
    "start_run",
    "tracking_uri",
]
