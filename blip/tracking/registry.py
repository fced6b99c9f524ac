"""The model registry: versions with their scores, and the alias of the champion."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from blip.digest import folder_digest
from blip.tracking.mlflow_run import MlflowRun
from blip.tracking.pyfunc import card, write_pyfunc
from blip.tracking.retries import patience, with_retries
from blip.tracking.run import Run, truncate
from blip.tracking.server import TrackingError, check_reachable, mlflow_client, tracking_uri

T = TypeVar("T")
SCORE = "score."
CARD = "README.md"
CHAMPION = "champion"
UNFIT = re.compile("[./:%\"']")
"""Characters that a registered model's name may hold, but the name of a logged model may not."""


class Champion(NamedTuple):
    """A registered version and the scores with which it was registered."""

    version: int
    metrics: dict[str, float]
    digest: str
    """SHA-256 of the model folder."""


def register_model(
    run: Run,
    model_dir: str | Path,
    name: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str] | None = None,
    *,
    task: str = "",
    facts: Mapping[str, str] | None = None,
    all_scores: Mapping[str, float] | None = None,
) -> int:
    """Registers a model folder that this run made, and returns its version; equal bytes get the same version.

    Beside the folder's files lie a card with `facts` by heading and all scores, and, for a `task` whose models MLflow
    can serve, what it needs for that.

    Raises TrackingError if tracking is off, and if MLflow refuses the name or the model.
    """
    if not isinstance(run, MlflowRun):
        raise TrackingError(
            f"model {name} cannot be registered while tracking is off: unset BLIP_TRACKING, and register on rank 0"
        )
    check_model_name(name)
    run.wait_for_attempt()  # the run's thread imports MLflow; an import in this thread at the same time would fail
    folder = Path(model_dir)
    digest = folder_digest(folder)
    version_tags = {key: truncate(value) for key, value in (tags or {}).items()}
    version_tags["digest"] = digest
    scores = {key: float(value) for key, value in metrics.items()}
    with TemporaryDirectory(prefix="blip-register-") as temporary:
        beside = Path(temporary)
        (beside / CARD).write_text(card(facts or {}, all_scores or scores), encoding="utf-8")
        write_pyfunc(beside, task)
        return retried(run.uri, lambda: find_or_create_version(run, [folder, beside], name, scores, version_tags))


def find_or_create_version(
    run: MlflowRun, folders: Sequence[Path], name: str, scores: Mapping[str, float], tags: Mapping[str, str]
) -> int:
    from mlflow.entities import Metric

    mlflow = mlflow_client(run.uri)
    create_model_name(run.uri, name)
    same = mlflow.search_model_versions(f"tags.digest = '{tags['digest']}'")
    versions = [int(found.version) for found in same if found.name == name]
    if versions:
        return max(versions)
    experiment = mlflow.get_run(run.id).info.experiment_id
    model = mlflow.create_logged_model(experiment, UNFIT.sub("_", name), run.id, dict(tags), model_type="blip")
    for folder in folders:
        mlflow.log_model_artifacts(model.model_id, str(folder))
    mlflow.finalize_logged_model(model.model_id, "READY")
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0, model.model_id, run_id=run.id) for key, value in scores.items()]
    mlflow.log_batch(run.id, points)
    score_tags = {f"{SCORE}{key}": repr(value) for key, value in scores.items()}
    version = mlflow.create_model_version(
        name,
        f"models:/{model.model_id}",
        run.id,
        tags={**tags, **score_tags},
        model_id=model.model_id,
        await_creation_for=0,
    )
    return int(version.version)


def champion(name: str, alias: str = CHAMPION) -> Champion | None:
    """Returns the version that has the alias, or None if no version has it. Raises TrackingError."""
    from mlflow import MlflowException

    check_model_name(name)
    uri = tracking_uri()
    check_reachable(uri)

    def request() -> Champion | None:
        try:
            found = mlflow_client(uri).get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # the first: no model of this name; the second: none of its versions has this alias
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        scores = {key.removeprefix(SCORE): float(value) for key, value in found.tags.items() if key.startswith(SCORE)}
        return Champion(int(found.version), scores, found.tags.get("digest", ""))

    return retried(uri, request)


def promote(name: str, version: int, alias: str = CHAMPION) -> None:
    """Moves the alias to a version."""
    uri = tracking_uri()
    retried(uri, lambda: mlflow_client(uri).set_registered_model_alias(name, alias, str(version)))


def check_model_name(name: str) -> None:
    """Raises TrackingError if MLflow cannot register a model under this name."""
    if not name.strip() or set(name) & set("/:") or name in (".", ".."):
        raise TrackingError(f"model name {name!r} must not be empty nor hold '/' or ':': choose another name")


def create_model_name(uri: str, name: str) -> None:
    """Creates a registered model without versions unless it exists."""
    from mlflow import MlflowException

    try:
        mlflow_client(uri).create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def retried(uri: str, request: Callable[[], T]) -> T:
    """Returns the result of a request, retried for `patience(uri)` seconds: a registration ends the whole pipeline.

    Raises TrackingError.
    """
    deadline = time.monotonic() + patience(uri)
    return with_retries(uri, request, lambda: deadline)
