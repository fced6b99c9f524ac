"""Kubeflow Pipelines, as far as it is known without its own package: whether it answers, and how it retries."""

import os
import ssl
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

CONTROLLER = "workflow-controller-configmap"
"""The ConfigMap of the workflow controller of Kubeflow Pipelines."""
RETRY_REMEDY = "kubectl apply --server-side --force-conflicts --field-manager=blip -k k8s/platform"


class KubeflowError(RuntimeError):
    """Kubeflow Pipelines refuses a request or is unreachable; the message names the reason and the way out."""


def system_namespace() -> str:
    """Returns the namespace of the servers of Kubeflow Pipelines, whatever namespace its users run in."""
    return os.environ.get("KFP_SYSTEM_NAMESPACE", "kubeflow")


def check_host(host: str) -> None:
    """Raises KubeflowError if the host does not answer within 10 seconds; kfp would retry for half a minute."""
    if not host.startswith(("http://", "https://")):
        raise KubeflowError(f"KFP_HOST={host} must begin with http:// or https://")
    try:
        trusted = ssl.create_default_context(cafile=os.environ.get("KFP_CA_FILE"))
        urlopen(f"{host}/apis/v2beta1/healthz", timeout=10, context=trusted).close()
    except HTTPError:
        return  # it answers; the token is checked by later requests
    except OSError as error:
        raise KubeflowError(f"Kubeflow Pipelines at {host} does not answer ({error}): correct KFP_HOST") from None


def controller_faults(data: dict[str, str]) -> list[str]:
    """Returns what is wrong with the settings of the workflow controller, a line each.

    The platform must try steps again that lose their node; the manifests of k8s/platform make it so.
    """
    defaults: Any = yaml.safe_load(data.get("workflowDefaults", "")) or {}
    retries = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
    found = []
    policy = retries.get("retryPolicy", "OnFailure")
    if policy != "Always":
        found.append(f"{CONTROLLER}: under retryPolicy {policy} some lost nodes end the run, not the attempt")
    if not retries.get("expression"):
        found.append(f"{CONTROLLER}: no expression chooses, so that wrong settings are retried")
    return found


def controller_settings() -> dict[str, str]:
    """Returns the settings of the workflow controller of the cluster that the kubeconfig names.

    Raises KubeflowError; ModuleNotFoundError without the client of Kubernetes.
    """
    import urllib3.exceptions
    from kubernetes import client, config

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
