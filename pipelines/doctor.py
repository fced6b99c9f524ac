"""Checks that the platform retries steps that lose their node; the manifests of k8s/platform make it so."""

import os
from typing import Any

import urllib3.exceptions
import yaml
from kubernetes import client, config

from pipelines.cluster import KubeflowError, system_namespace

CONTROLLER = "workflow-controller-configmap"
"""The ConfigMap of the workflow controller of Kubeflow Pipelines."""
REMEDY = "kubectl apply --server-side --force-conflicts --field-manager=blip -k k8s/platform"


def faults(data: dict[str, str]) -> list[str]:
    """Returns what is wrong with the settings of the workflow controller, a line each."""
    defaults: Any = yaml.safe_load(data.get("workflowDefaults", "")) or {}
    retries = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
    found = []
    policy = retries.get("retryPolicy", "OnFailure")
    if policy != "Always":
        found.append(f"{CONTROLLER}: under retryPolicy {policy} some lost nodes end the run, not the attempt: {REMEDY}")
    if not retries.get("expression"):
        found.append(f"{CONTROLLER}: no expression chooses, so that wrong settings are retried: {REMEDY}")
    return found


def live_settings() -> dict[str, str]:
    """Returns the settings of the workflow controller of the cluster that the kubeconfig names. Raises
    KubeflowError.
    """
    namespace = system_namespace()
    try:
        settings = client.Configuration()
        file, context = os.environ.get("KUBECONFIG"), os.environ.get("KFP_CONTEXT")
        config.load_kube_config(file, context, client_configuration=settings)
        settings.retries = False  # pyright: ignore[reportAttributeAccessIssue]
        api: Any = client.CoreV1Api(client.ApiClient(settings))
        return api.read_namespaced_config_map(CONTROLLER, namespace).data or {}
    except config.ConfigException as error:
        raise KubeflowError(f"no cluster to look at ({error}): set KUBECONFIG") from None
    except client.ApiException as error:
        answer = f"the cluster answered {error.status} {error.reason} for ConfigMap {namespace}/{CONTROLLER}"
        raise KubeflowError(answer) from None
    except urllib3.exceptions.HTTPError as error:
        raise KubeflowError(f"the cluster does not answer ({error}): correct KUBECONFIG") from None
