"""The record of runs, and the registry of models, in MLflow: by default a SQLite file and a folder."""

from blip.tracking.registry import Champion, champion, download, promote, register
from blip.tracking.run import DataInput, Run, start
from blip.tracking.server import TrackingError, tracking_uri

__all__ = [
    "Champion",
    "DataInput",
    "Run",
    "TrackingError",
    "champion",
    "download",
    "promote",
    "register",
    "start",
    "tracking_uri",
]
