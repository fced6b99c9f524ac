"""Access to a Kubernetes API server: jobs, their pods and logs. No other module uses the Kubernetes client."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from blip.config import ConfigError
from blip.launch.job import KubernetesObject

INTERVAL = 5.0
"""Seconds between two requests for the status of a job."""
LOG_TIMEOUT = 30.0
"""Seconds without a new line after which a log is left, to check the status of its job."""
MAX_OUTAGE = 1800.0
"""Seconds for which requests to an unavailable API server are retried, such as during an upgrade of the cluster."""
FINAL_PHASES = {"Succeeded", "Failed", "Error"}
"""The phases of a workflow that has ended."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TRANSIENT_STATUS = {429, 500, 502, 503, 504}
NAME_LABELS = {"TrainJob": "jobset.sigs.k8s.io/jobset-name", "Job": "job-name"}
"""The label of pods that holds the name of their job, by kind of job."""
CONTAINERS = {"TrainJob": "node", "Job": "worker"}
"""The name of the main container of pods, by kind of job."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


class Cluster:
    """One namespace of a cluster: that of this process in a pod, else that of the kubeconfig."""

    def __init__(self, namespace: str = ""):
        settings = client.Configuration()
        try:
            if NAMESPACE_FILE.exists():
                config.load_incluster_config(client_configuration=settings)
                context: dict[str, Any] = {"namespace": NAMESPACE_FILE.read_text().strip()}
            else:
                file = os.environ.get("KUBECONFIG")  # the client reads the variable only once, on import
                config.load_kube_config(file, client_configuration=settings)
                context = config.list_kube_config_contexts(file)[1]["context"]
        except config.ConfigException as e:
            raise ConfigError(
                f"there is no cluster to submit to: {e}; run in a pod, or set KUBECONFIG, or use one node"
            ) from None
        settings.retries = False  # pyright: ignore[reportAttributeAccessIssue]  # `call` retries
        api = client.ApiClient(settings)
        self.objects = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)
        self.versions = client.VersionApi(api)
        self.namespace: str = namespace or context.get("namespace") or "default"

    def create(self, job: KubernetesObject) -> bool:
        """Creates the job; returns False if its name is taken."""
        try:
            self.call(self.objects.create_namespaced_custom_object, **self.path_of(job), body=job)
        except client.ApiException as e:
            if e.status != 409:
                raise
            return False
        return True

    def read(self, job: KubernetesObject) -> KubernetesObject | None:
        """Returns the object of this kind and name from the cluster, or None."""
        try:
            return self.call(
                self.objects.get_namespaced_custom_object, **self.path_of(job), name=job["metadata"]["name"]
            )
        except client.ApiException as e:
            if e.status != 404:
                raise
            return None

    def labelled(self, kind: KubernetesObject, labels: str) -> list[KubernetesObject]:
        """Returns the objects of a kind with these labels; none if the cluster does not know the kind."""
        try:
            found = self.call(self.objects.list_namespaced_custom_object, **self.path_of(kind), label_selector=labels)
        except client.ApiException as e:
            if e.status != 404:
                raise
            return []
        # the items of a list do not say their kind
        return [{**kind, **item} for item in found["items"]]

    def add_owner(self, found: KubernetesObject, owner: KubernetesObject) -> bool:
        """Adds an owner to a job that exists; returns False if the job was changed or deleted in the meantime."""
        owners = [*found["metadata"].get("ownerReferences", []), owner]
        metadata = {"ownerReferences": owners, "resourceVersion": found["metadata"].get("resourceVersion")}
        try:
            self.call(
                self.objects.patch_namespaced_custom_object,
                **self.path_of(found),
                name=found["metadata"]["name"],
                body={"metadata": metadata},
            )
        except client.ApiException as e:
            if e.status not in (404, 409):
                raise
            return False
        return True

    def delete(self, job: KubernetesObject) -> None:
        """Requests the deletion of a job; its name is free once its pods are gone."""
        try:
            self.call(
                self.objects.delete_namespaced_custom_object,
                **self.path_of(job),
                name=job["metadata"]["name"],
                propagation_policy="Foreground",
            )
        except client.ApiException as e:
            if e.status != 404:
                raise

    def exit_codes(self, job: KubernetesObject) -> set[int]:
        """Returns the exit codes of the ended workers whose pods still exist."""
        container = CONTAINERS[job["kind"]]
        statuses = [status for pod in self.pods(job) for status in pod.status.container_statuses or []]
        ended = [status.state.terminated for status in statuses if status.name == container]
        return {state.exit_code for state in ended if state}

    def lines(self, job: KubernetesObject, seen: dict[str, str]) -> Iterator[str]:
        """Yields new lines of the first worker's log until it ends or stalls.

        `seen` holds the timestamp of the last line by pod, and is updated.
        """
        pod = self.first_pod(job)
        if pod is None:
            return
        name = pod.metadata.name
        container = CONTAINERS[job["kind"]]
        options: dict[str, Any] = {"follow": True, "timestamps": True, "_preload_content": False}
        timeout = 10.0, LOG_TIMEOUT
        try:
            log: Any = self.core.read_namespaced_pod_log(
                name, self.namespace, container=container, _request_timeout=timeout, **options
            )
            for line in log:
                stamp, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
                if stamp > seen.get(name, ""):
                    seen[name] = stamp
                    yield text
        except HTTPError:
            pass  # stalled or interrupted: the caller checks the status of the job
        except client.ApiException as e:
            if e.status not in TRANSIENT_STATUS | {
                400,
                404,
            }:  # 400: the container has not started; 404: the pod is gone
                raise

    def first_pod(self, job: KubernetesObject) -> Any | None:
        """Returns the pod of the lowest index that has started, the newest of several; None if there is none."""
        started = [pod for pod in self.pods(job) if pod.status.phase != "Pending"]
        started.sort(key=lambda pod: pod.metadata.creation_timestamp, reverse=True)
        return min(started, key=lambda pod: int((pod.metadata.labels or {}).get(COMPLETION_INDEX, 0)), default=None)

    def pods(self, job: KubernetesObject) -> list[Any]:
        return self.call(self.core.list_namespaced_pod, self.namespace, label_selector=selector(job)).items

    def owner(self) -> KubernetesObject | None:
        """Returns a reference to the owner of this process's pod, for a step its Workflow; None if there is none.

        The pod itself is not the owner: the job would be deleted with it, and the next attempt of the step would start
        from scratch.
        """
        if not NAMESPACE_FILE.exists():
            return None
        name = os.environ.get("KFP_POD_NAME") or os.environ["HOSTNAME"]  # a host's name ends after 63 characters
        pod = self.call(self.core.read_namespaced_pod, name, self.namespace)
        if not pod.metadata.owner_references:
            return None
        owner = pod.metadata.owner_references[0]
        return {
            "apiVersion": owner.api_version,
            "kind": owner.kind,
            "name": owner.name,
            "uid": owner.uid,
            "blockOwnerDeletion": False,
        }

    def is_running(self, owner: KubernetesObject) -> bool:
        """Returns whether a workflow that owns a job exists, has not ended, and is not being stopped or deleted."""
        found = self.read({**owner, "metadata": {"name": owner["name"]}})
        if found is None or "deletionTimestamp" in found["metadata"]:
            return False
        # another of the same name is not the owner
        if found["metadata"].get("uid", owner["uid"]) != owner["uid"]:
            return False
        if found.get("status", {}).get("phase") in FINAL_PHASES:
            return False
        # Kubeflow Pipelines stops a workflow by a deadline of 0, Argo by `shutdown`
        return not found["spec"].get("shutdown") and found["spec"].get("activeDeadlineSeconds") != 0

    def version(self) -> tuple[int, int]:
        """Returns the version of Kubernetes, such as (1, 31)."""
        found = self.call(self.versions.get_code)
        return int(found.major), int(found.minor.rstrip("+"))

    def path_of(self, job: KubernetesObject) -> dict[str, str]:
        """Returns the parts of the API path of a job's kind."""
        group, version = job["apiVersion"].split("/")
        return {"group": group, "version": version, "namespace": self.namespace, "plural": f"{job['kind'].lower()}s"}

    def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Returns the response of the API server; retries for `MAX_OUTAGE` seconds while it is unavailable."""
        until = time.monotonic() + MAX_OUTAGE
        while True:
            try:
                return method(*args, **options, _request_timeout=(10.0, 60.0))
            except (client.ApiException, HTTPError) as e:
                transient = not isinstance(e, client.ApiException) or e.status in TRANSIENT_STATUS
                if not transient or time.monotonic() > until:
                    raise
            time.sleep(INTERVAL)


def selector(job: KubernetesObject) -> str:
    """Returns the label selector of a job's pods."""
    return f"{NAME_LABELS[job['kind']]}={job['metadata']['name']}"
