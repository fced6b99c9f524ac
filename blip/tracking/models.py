"""Models that MLflow keeps, by the name of a version or a run, as local folders."""

import re
from pathlib import Path

from blip.tracking.registry import retried
from blip.tracking.server import TrackingError, check_reachable, mlflow_client, tracking_uri

REGISTERED, OF_RUN = "models:/", "runs:/"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def is_tracked(source: str) -> bool:
    """Returns whether a source names a model of MLflow: `models:/name@alias`, `models:/name/3`, `runs:/ID` or an ID."""
    return source.startswith((REGISTERED, OF_RUN)) or bool(RUN_ID.fullmatch(source))


def download_model(source: str, folder: Path) -> Path:
    """Copies the files of a model of MLflow below a local folder, and returns the folder that holds them.

    Raises TrackingError if MLflow does not answer, or has no such model.
    """
    from mlflow import MlflowException
    from mlflow.artifacts import download_artifacts

    uri = tracking_uri()
    check_reachable(uri)

    def request() -> Path:
        try:
            artifact = source if source.startswith(REGISTERED) else artifact_of_run(uri, source)
            found = download_artifacts(artifact_uri=artifact, dst_path=str(folder), tracking_uri=uri)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise TrackingError(
                    f"model {source}: MLflow at {uri} has none ({error.message.splitlines()[0]}); register one first, "
                    "as the bootstrap does, or name another"
                ) from None
            raise
        return Path(found)

    return retried(uri, request)


def artifact_of_run(uri: str, source: str) -> str:
    """Returns the URI of the model that a run logged, or of the artifacts that `runs:/ID/path` names."""
    run, _, path = source.removeprefix(OF_RUN).partition("/")
    if path:
        return f"{OF_RUN}{run}/{path}"
    client = mlflow_client(uri)
    experiment = client.get_run(run).info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'", max_results=2)
    if len(found) != 1:
        number = "several models" if found else "no model"
        raise TrackingError(
            f"model {source}: the run has {number}; name a version as models:/name@alias, or runs:/ID/path"
        )
    return f"{REGISTERED}{found[0].model_id}"
