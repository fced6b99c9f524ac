"""What this project asks of a Kubernetes API server: jobs, their pods and logs. All else does without the Kubernetes client."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from blip.config import ConfigError
from blip.launch.job import Manifest

INTERVAL = 5.0
"""Seconds between two questions."""
SILENCE = 30.0
"""Seconds after which a log that says nothing is left, to look at its job."""
PATIENCE = 1800.0
"""Seconds that an API server may be away: a job of days outlives an upgrade of its cluster."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TRANSIENT = {429, 500, 502, 503, 504}
PODS = {"TrainJob": ("jobset.sigs.k8s.io/jobset-name", "node"), "Job": ("job-name", "worker")}
"""By the kind of a job: the label that holds its name at its pods, and the container that does the work."""
INDEX = "batch.kubernetes.io/job-completion-index"


class Cluster:
    """One namespace of a cluster: this process's own when it runs in a pod, else the kubeconfig's."""

    def __init__(self, namespace: str = ""):
        settings = client.Configuration()
        try:
            if NAMESPACE_FILE.exists():
                config.load_incluster_config(client_configuration=settings)
                context: dict[str, Any] = {"namespace": NAMESPACE_FILE.read_text().strip()}
            else:
                file = os.environ.get("KUBECONFIG")  # the client itself reads it but once, when it is imported
                config.load_kube_config(file, client_configuration=settings)
                context = config.list_kube_config_contexts(file)[1]["context"]
        except config.ConfigException as e:
            raise ConfigError(f"there is no cluster to submit to: {e}; run in a pod, or set KUBECONFIG, or use one node") from None
        settings.retries = False  # pyright: ignore[reportAttributeAccessIssue]  # `call` tries again
        api = client.ApiClient(settings)
        self.objects, self.core, self.versions = client.CustomObjectsApi(api), client.CoreV1Api(api), client.VersionApi(api)
        self.namespace: str = namespace or context.get("namespace") or "default"

    def create(self, job: Manifest) -> bool:
        """Creates the job; False when its name is taken."""
        try:
            self.call(self.objects.create_namespaced_custom_object, **self.place(job), body=job)
        except client.ApiException as e:
            if e.status != 409:
                raise
            return False
        return True

    def read(self, job: Manifest) -> Manifest | None:
        """The object of this kind and name as it is on the cluster, or None."""
        try:
            return self.call(self.objects.get_namespaced_custom_object, **self.place(job), name=job["metadata"]["name"])
        except client.ApiException as e:
            if e.status != 404:
                raise
            return None

    def delete(self, job: Manifest) -> None:
        """Has the cluster stop and delete a job; its name is free when its pods are gone."""
        try:
            place, name = self.place(job), job["metadata"]["name"]
            self.call(self.objects.delete_namespaced_custom_object, **place, name=name, propagation_policy="Foreground")
        except client.ApiException as e:
            if e.status != 404:
                raise

    def exit_codes(self, job: Manifest) -> set[int]:
        """The exit codes of workers that ended and whose pods are still there."""
        states = [s for pod in self.pods(job) for s in pod.status.container_statuses or [] if s.name == PODS[job["kind"]][1]]
        return {s.state.terminated.exit_code for s in states if s.state.terminated}

    def lines(self, job: Manifest, seen: dict[str, str]) -> Iterator[str]:
        """New lines of the first worker's log, until it ends or falls silent; `seen` keeps the time of the last line by pod."""
        pod = self.first_pod(job)
        if pod is None:
            return
        name, timeout = pod.metadata.name, (10.0, SILENCE)
        streamed: dict[str, Any] = {"follow": True, "timestamps": True, "_preload_content": False, "_request_timeout": timeout}
        try:
            answer: Any = self.core.read_namespaced_pod_log(name, self.namespace, container=PODS[job["kind"]][1], **streamed)
            for line in answer:
                stamp, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
                if stamp > seen.get(name, ""):
                    seen[name] = stamp
                    yield text
        except HTTPError:
            pass  # silent for long, or cut: the state of the job tells what it means
        except client.ApiException as e:
            if e.status not in TRANSIENT | {400, 404}:  # 400: its container has not begun; 404: it is gone
                raise

    def first_pod(self, job: Manifest) -> Any | None:
        """The pod of the lowest index that has begun, the newest where there are several."""
        begun = [pod for pod in self.pods(job) if pod.status.phase != "Pending"]
        begun.sort(key=lambda pod: pod.metadata.creation_timestamp, reverse=True)
        return min(begun, key=lambda pod: int((pod.metadata.labels or {}).get(INDEX, 0)), default=None)

    def pods(self, job: Manifest) -> list[Any]:
        return self.call(self.core.list_namespaced_pod, self.namespace, label_selector=selector(job)).items

    def owner(self) -> Manifest | None:
        """An owner reference to what this process's pod belongs to: for a step of a pipeline its Workflow. None outside of a cluster.

        The pod itself is no good owner: the job would be deleted with it, and the step's next attempt would have to begin anew.
        """
        if not NAMESPACE_FILE.exists():
            return None
        pod = self.call(self.core.read_namespaced_pod, os.environ["HOSTNAME"], self.namespace)
        if not pod.metadata.owner_references:
            return None
        above = pod.metadata.owner_references[0]
        return {"apiVersion": above.api_version, "kind": above.kind, "name": above.name, "uid": above.uid, "blockOwnerDeletion": False}

    def is_running(self, owner: Manifest) -> bool:
        """Whether an owner is there and was told neither to stop nor to go; one that this process may not see counts as gone."""
        try:
            above = self.read({**owner, "metadata": {"name": owner["name"]}})
        except client.ApiException as e:
            if e.status != 403:
                raise
            return False
        if above is None or "deletionTimestamp" in above["metadata"]:
            return False
        # Kubeflow Pipelines ends a workflow by its deadline, Argo by `shutdown`
        return not above["spec"].get("shutdown") and above["spec"].get("activeDeadlineSeconds") != 0

    def version(self) -> tuple[int, int]:
        """The version of Kubernetes, as (1, 31)."""
        found = self.call(self.versions.get_code)
        return int(found.major), int(found.minor.rstrip("+"))

    def place(self, job: Manifest) -> dict[str, str]:
        group, version = job["apiVersion"].split("/")
        return {"group": group, "version": version, "namespace": self.namespace, "plural": f"{job['kind'].lower()}s"}

    def call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What the API server answers, however long it is away."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return method(*args, **options, _request_timeout=(10.0, 60.0))
            except (client.ApiException, HTTPError) as e:
                passing = not isinstance(e, client.ApiException) or e.status in TRANSIENT
                if not passing or time.monotonic() > until:
                    raise
            time.sleep(INTERVAL)


def selector(job: Manifest) -> str:
    """The label selector of a job's pods."""
    return f"{PODS[job['kind']][0]}={job['metadata']['name']}"
