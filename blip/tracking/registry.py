"""The registry of models: versions with their scores, and the alias that says which one is the champion."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from blip.digest import folder_digest
from blip.tracking.outage import patience, patiently
from blip.tracking.run import KeptRun, Run, cut
from blip.tracking.server import TrackingError, client, probe, tracking_uri

T = TypeVar("T")
SCORE = "score."
CHAMPION = "champion"
UNFIT = re.compile("[./:%\"']")
"""What a logged model's name must not hold, though a registered one's may."""


class Champion(NamedTuple):
    """A registered version and the scores it was registered with."""

    version: int
    metrics: dict[str, float]
    digest: str
    """Of the model folder."""


def register(
    run: Run, model_dir: str | Path, name: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
) -> int:
    """Keeps a model folder as a new version of a registered model, made by this run; the same bytes again are the same version."""
    if not isinstance(run, KeptRun):
        raise TrackingError(
            f"model {name} cannot be registered while tracking is off: unset BLIP_TRACKING, and register on the first rank"
        )
    check_model_name(name)
    folder = Path(model_dir)
    digest = folder_digest(folder)
    marks = {key: cut(value) for key, value in (tags or {}).items()} | {"digest": digest}
    scores = {key: float(value) for key, value in metrics.items()}
    return waiting(run.uri, lambda: find_or_make_version(run, folder, name, scores, marks))


def find_or_make_version(
    run: KeptRun, folder: Path, name: str, scores: Mapping[str, float], marks: Mapping[str, str]
) -> int:
    from mlflow.entities import Metric

    mlflow = client(run.uri)
    make_name(run.uri, name)
    same = mlflow.search_model_versions(f"tags.digest = '{marks['digest']}'")
    if versions := [int(one.version) for one in same if one.name == name]:
        return max(versions)
    experiment = mlflow.get_run(run.id).info.experiment_id
    model = mlflow.create_logged_model(experiment, UNFIT.sub("_", name), run.id, dict(marks), model_type="blip")
    mlflow.log_model_artifacts(model.model_id, str(folder))
    mlflow.finalize_logged_model(model.model_id, "READY")
    now = int(time.time() * 1000)
    mlflow.log_batch(
        run.id, [Metric(key, value, now, 0, model.model_id, run_id=run.id) for key, value in scores.items()]
    )
    kept = {f"{SCORE}{key}": repr(value) for key, value in scores.items()}
    version = mlflow.create_model_version(
        name, f"models:/{model.model_id}", run.id, tags={**marks, **kept}, model_id=model.model_id, await_creation_for=0
    )
    return int(version.version)


def champion(name: str, alias: str = CHAMPION) -> Champion | None:
    """Returns the version that bears the alias, or None when no version does."""
    from mlflow import MlflowException

    check_model_name(name)
    uri = tracking_uri()
    probe(uri)

    def ask() -> Champion | None:
        try:
            found = client(uri).get_model_version_by_alias(name, alias)
        except MlflowException as e:
            # the first: no model of this name; the second: none of its versions has this alias
            if e.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        scores = {key.removeprefix(SCORE): float(value) for key, value in found.tags.items() if key.startswith(SCORE)}
        return Champion(int(found.version), scores, found.tags.get("digest", ""))

    return waiting(uri, ask)


def promote(name: str, version: int, alias: str = CHAMPION) -> None:
    """Gives the alias to a version, away from the one that had it."""
    uri = tracking_uri()
    waiting(uri, lambda: client(uri).set_registered_model_alias(name, alias, str(version)))


def download(name: str, dest: str | Path, alias: str = CHAMPION) -> Path:
    """Copies the model folder of the version with this alias to `dest`, a folder that is new."""
    found, uri, dest = champion(name, alias), tracking_uri(), Path(dest)
    if found is None:
        raise TrackingError(
            f"no version of model {name} at {uri} has the alias {alias}: register one, or name another alias"
        )
    if dest.exists():
        raise TrackingError(f"{dest} exists: a model is downloaded to a new folder")
    from mlflow.artifacts import download_artifacts

    dest.parent.mkdir(parents=True, exist_ok=True)

    def fetch() -> Path:
        with TemporaryDirectory(dir=dest.parent) as scratch:
            source = client(uri).get_model_version_download_uri(name, str(found.version))
            return Path(download_artifacts(source, dst_path=scratch)).rename(dest)

    return waiting(uri, fetch)


def check_model_name(name: str) -> None:
    """Raises TrackingError for a name under which MLflow registers no model."""
    if not name.strip() or set(name) & set("/:") or name in (".", ".."):
        raise TrackingError(
            f"model name {name!r}: MLflow takes no '/' or ':' in it, and no empty one: choose another name"
        )


def make_name(uri: str, name: str) -> None:
    from mlflow import MlflowException

    try:
        client(uri).create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def waiting(uri: str, request: Callable[[], T]) -> T:
    """Returns what MLflow answers, as long as that takes: registering is the end of all work. Raises TrackingError."""
    until = time.monotonic() + patience(uri)
    return patiently(uri, request, lambda: until)
