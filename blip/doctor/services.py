"""Checks of services: store, mirror of weights, MLflow, Kubeflow Pipelines."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blip.doctor.finding import Finding
from blip.doctor.machine import nearest_folder
from blip.launch.kubeflow import RETRY_REMEDY, KubeflowError, check_host, controller_faults, controller_settings
from blip.storage import StoreError, open_store, probe
from blip.storage.folder import LOCK
from blip.tracking.server import SQLITE, TrackingError, check_reachable, tracking_uri

FOLDER_REMEDY = "name a folder that you may write to, or s3://bucket/prefix, by --store"
BUCKET_REMEDY = "name another by --store, or correct AWS_ENDPOINT_URL and the keys of the environment"
CONDITIONAL_REMEDY = "one worker at a time is safe; several need a folder, AWS S3, Ceph 16.2 or SeaweedFS 4.18"


def check_store(uri: str) -> Iterator[Finding]:
    """Writes, reads, lists and deletes an object, then lets writers race for one; leaves nothing behind."""
    made = [] if "://" in uri else missing_folders(Path(uri))
    try:
        store = open_store(uri)
        probe(store, conditional=False)
        yield Finding("store", "ok", f"{store.uri}: writes, reads, lists, deletes")
    except StoreError as error:
        yield Finding("store", "fault", str(error), BUCKET_REMEDY if uri.startswith("s3://") else FOLDER_REMEDY)
        return
    try:
        probe(store)
        yield Finding("store: conditional writes", "ok", "one of several writers wins")
    except StoreError as error:
        yield Finding("store: conditional writes", "fault", str(error), CONDITIONAL_REMEDY)
    finally:
        remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Removes folders of a store that a check made, unless somebody has put something there."""
    with suppress(OSError):
        for folder in folders:
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()


def missing_folders(path: Path) -> list[Path]:
    """Returns a folder and its parents as far as they do not exist, the innermost first."""
    folder = path.absolute()
    found = []
    while not folder.exists():
        found.append(folder)
        folder = folder.parent
    return found


def check_weights() -> Iterator[Finding]:
    """Where the weights and vocabularies of presets come from."""
    mirror = os.environ.get("BLIP_WEIGHTS", "")
    if not mirror:
        offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "ON", "YES")
        found = "the hub's cache alone (HF_HUB_OFFLINE)" if offline else "the hub, and its cache"
        yield Finding("weights", "note", found, "for machines without a network: blip fetch-weights, then BLIP_WEIGHTS")
        return
    try:
        files = len(open_store(mirror).list())
    except StoreError as error:
        yield Finding("weights", "fault", str(error), "correct BLIP_WEIGHTS, or unset it")
        return
    if files:
        yield Finding("weights", "ok", f"{mirror}: {files} files")
    else:
        yield Finding("weights", "warning", f"{mirror} is empty", f"blip fetch-weights --preset base --to {mirror}")


def check_tracking(root: str = "runs") -> Iterator[Finding]:
    """MLflow: whether the server answers, or the file can be written. Does not make the file."""
    if os.environ.get("BLIP_TRACKING", "").lower() == "off":
        yield Finding("MLflow", "note", "off (BLIP_TRACKING=off)", "unset BLIP_TRACKING to keep a record of runs")
        return
    uri = tracking_uri(root)
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not path.exists():
        folder = nearest_folder(path.parent)
        if os.access(folder, os.W_OK):
            yield Finding("MLflow", "ok", f"the first run makes {path}")
        else:
            yield Finding(
                "MLflow", "fault", f"{folder} cannot be written", "let MLFLOW_TRACKING_URI name another place"
            )
        return
    try:
        check_reachable(uri)
    except TrackingError as error:
        found, _, remedy = str(error).rpartition(": ")
        yield Finding("MLflow", "fault", found, remedy)
        return
    yield Finding("MLflow", "ok", uri)


def check_kubeflow() -> Iterator[Finding]:
    """Kubeflow Pipelines at KFP_HOST, and its workflow controller, on whose settings retries depend."""
    if host := os.environ.get("KFP_HOST", "").rstrip("/"):
        try:
            check_host(host)
            yield Finding("KFP", "ok", f"{host} answers")
        except KubeflowError as error:
            yield Finding("KFP", "fault", str(error), "start it, or unset KFP_HOST to run on this machine")
    else:
        yield Finding("KFP", "note", "pipelines run on this machine", "for a cluster set KFP_HOST=https://...")
    if not has_cluster():
        yield Finding("KFP: retries", "note", "no cluster to look at", "set KUBECONFIG, if there is one")
        return
    try:
        faults = controller_faults(controller_settings())
    except ModuleNotFoundError:
        yield Finding("KFP: retries", "note", "not looked at", "pip install 'blip-bootstrap[cluster]'")
        return
    except KubeflowError as error:
        remedy = "correct KUBECONFIG, KFP_CONTEXT or KFP_SYSTEM_NAMESPACE, if Kubeflow Pipelines is to run there"
        yield Finding("KFP: retries", "fault" if host else "warning", str(error), remedy)
        return
    for fault in faults:
        yield Finding("KFP: retries", "fault", fault, RETRY_REMEDY)
    if not faults:
        yield Finding("KFP: retries", "ok", "steps that lose their node are tried again")


def has_cluster() -> bool:
    """Returns whether there is a kubeconfig."""
    given = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)[0]
    return Path(given).expanduser().is_file()
