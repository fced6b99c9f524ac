"""What every job on a cluster is told: its name, its image, what it may use, where it may run, and its credentials by reference."""

import hashlib
import json
import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from blip.config import Config
from blip.redaction import USERINFO

Manifest = dict[str, Any]
"""A Kubernetes object as plain values."""

SPEC = "blip.internal/spec"
"""The annotation that holds the digest of what a job was rendered from: whoever attaches to a job wants to know that it is the same."""
SECRETS = {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}
"""Variables that come from the Secret `blip`, which need not exist: with workload identity it does not."""
SETTINGS = {"AWS_ENDPOINT_URL": "s3-endpoint", "AWS_REGION": "s3-region", "MLFLOW_TRACKING_URI": "mlflow-tracking-uri"}
"""Variables that come from the ConfigMap `blip`."""
SENSITIVE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|PRIVATE_KEY")
WRITABLE = {"scratch": "/scratch", "tmp": "/tmp", "shm": "/dev/shm"}
"""All that a container can write to, by volume: its root file system is read-only."""


class PodConfig(Config):
    """What each pod of a job gets, and where it may run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # YAML reads `cpu: 8` as a number

    namespace: str = ""
    """Where to run; empty means where this process runs, and only there can the job belong to the workflow of its step."""
    image: str
    """The image by tag or digest."""
    cpu: str = Field("8", pattern=r"^\d+(\.\d+)?m?$")
    """CPUs of a pod."""
    memory: str = Field("64Gi", pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")
    """Memory of a pod; /dev/shm counts against it."""
    gpus: int = Field(default=1, ge=0)
    """GPUs of a pod."""
    gpu_type: str = "nvidia.com/gpu"
    """The resource that counts them."""
    pool: dict[str, str] = Field({})
    """Labels of the nodes to run on."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints to put up with."""
    service_account: str = "blip-worker"
    """Whom the pods act as: what carries the workload identity that may reach the store."""
    queue: str = ""
    """The Kueue LocalQueue that admits the job, where there is one."""
    max_hours: float | None = Field(default=None, gt=0)
    """The cluster ends the job after so many hours of running, whatever it does."""
    env: dict[str, str] = Field({})
    """Further environment variables; secrets belong into the Secret."""

    @field_validator("image")
    @classmethod
    def names_one_build(cls, image: str) -> str:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            raise ValueError("an image must name one build for good: give a tag other than latest, or a digest")
        return image

    @field_validator("env")
    @classmethod
    def has_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        if found := sorted(name for name in env if SENSITIVE.search(name.upper())):
            names = ", ".join(found)
            raise ValueError(f"{names} would stand readable in the job: put the value into the Secret blip and refer to it")
        if found := sorted(name for name, value in env.items() if USERINFO.search(value)):
            raise ValueError(f"the password in {', '.join(found)} would stand readable in the job: put it into the Secret blip")
        return env


class JobConfig(PodConfig):
    """A job as it is submitted."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)
    """What the job is called by; it goes on with a fingerprint of what is asked, and what is asked twice is submitted once."""
    args: tuple[str, ...] = ()
    """What comes after `python -m MODULE` in every process."""

    def metadata(self, spec: Manifest, component: str, owner: Manifest | None) -> Manifest:
        """The job's own labels, its queue, and whom it belongs to: a job is deleted with its owner."""
        labels = labels_of(component)
        if self.queue:
            labels["kueue.x-k8s.io/queue-name"] = self.queue
        annotations = {SPEC: hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]}
        metadata: Manifest = {"name": self.name, "labels": labels, "annotations": annotations}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if owner:
            metadata["ownerReferences"] = [owner]
        return metadata

    def resources(self) -> Manifest:
        """Requests that equal the limits: such a pod is the last that its node evicts."""
        amounts = {"cpu": self.cpu, "memory": self.memory} | ({self.gpu_type: str(self.gpus)} if self.gpus else {})
        return {"requests": amounts, "limits": dict(amounts)}

    def environment(self) -> list[Manifest]:
        """The variables of a container: plain ones by value, settings and secrets by reference."""
        plain: list[Manifest] = [{"name": name, "value": value} for name, value in sorted(self.env.items())]
        return plain + references("configMapKeyRef", SETTINGS) + references("secretKeyRef", SECRETS)

    def placement(self) -> Manifest:
        """Where the pods may run and as whom, as fields of a pod's specification."""
        placed: Manifest = {"serviceAccountName": self.service_account}
        if self.pool:
            placed["nodeSelector"] = self.pool
        if self.tolerations:
            placed["tolerations"] = list(self.tolerations)
        return placed

    def deadline(self) -> Manifest:
        return {"activeDeadlineSeconds": int(self.max_hours * 3600)} if self.max_hours else {}


def labels_of(component: str) -> dict[str, str]:
    """The labels by which the network policies know a pod."""
    return {"app.kubernetes.io/part-of": "blip", "app.kubernetes.io/component": component}


def references(kind: str, keys: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "valueFrom": {kind: {"name": "blip", "key": key, "optional": True}}} for name, key in keys.items()]
