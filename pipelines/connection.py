"""The connection to Kubeflow Pipelines."""

import os
import warnings
from pathlib import Path
from typing import Any

from kfp import Client
from kfp.client import ServiceAccountTokenVolumeCredentials

from blip.launch.kubeflow import KubeflowError, check_host, system_namespace

TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"
"""The path of a pod's projected token for Kubeflow Pipelines, unless KF_PIPELINES_SA_TOKEN_PATH overrides it."""


def connect(host: str) -> Any:
    """Returns a `kfp.Client`, typed Any since its answers have no types. Raises KubeflowError if it has no address."""
    warnings.filterwarnings("ignore", module="kfp")
    token = os.environ.get("KFP_TOKEN")
    projected = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN_PATH)).is_file()
    kubeconfig = Path(os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)[0]).expanduser()
    if host:
        check_host(host)
    elif "KUBERNETES_SERVICE_HOST" not in os.environ and not kubeconfig.is_file():
        raise KubeflowError(
            f"no way to Kubeflow Pipelines: give KFP_HOST=https://..., or a kubeconfig (there is none at {kubeconfig})"
        )
    return Client(
        host or None,
        namespace=system_namespace(),
        existing_token=token,
        credentials=ServiceAccountTokenVolumeCredentials() if projected and not token else None,
        kube_context=os.environ.get("KFP_CONTEXT"),
        ssl_ca_cert=os.environ.get("KFP_CA_FILE"),
    )
