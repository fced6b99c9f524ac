"""The settings of every job on a cluster: name, image, resources, placement, and references to its credentials."""

import hashlib
import json
import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from blip.config import Config
from blip.redaction import USERINFO

KubernetesObject = dict[str, Any]
"""A Kubernetes object as plain values."""

SPEC_ANNOTATION = "blip.internal/spec"
"""The annotation with the digest of a job's specification, compared before attaching to a running job of its name."""
SECRETS = {"AWS_ACCESS_KEY_ID": "access-key", "AWS_SECRET_ACCESS_KEY": "secret-key"}
"""Variables from the Secret `blip`, by key; it is optional, as workload identity needs none."""
SETTINGS = {
    "AWS_ENDPOINT_URL": "s3-endpoint",
    "AWS_REGION": "s3-region",
    "MLFLOW_TRACKING_URI": "mlflow-tracking-uri",
    "BLIP_MLFLOW_UI": "mlflow-ui",
    "BLIP_WEIGHTS": "weights",
    "HF_HUB_OFFLINE": "hub-offline",
    "BLIP_CACHE_GB": "cache-gb",
}
"""Variables from the ConfigMap `blip`, by key."""
STEP_SETTINGS = SETTINGS | {"BLIP_QUEUE": "queue", "BLIP_PLACEMENTS": "placements"}
"""Variables of steps from the ConfigMap `blip`, by key: a step also needs to know the queue of its jobs, and the
cluster's own placements."""
SENSITIVE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|PRIVATE_KEY")
WRITABLE = {"scratch": "/scratch", "tmp": "/tmp", "shm": "/dev/shm"}
"""The writable paths of a container by volume; its root file system is read-only."""


class PodConfig(Config):
    """The resources and the placement of each pod of a job."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # YAML reads `cpu: 8` as a number

    namespace: str = ""
    """The namespace; empty for that of this process, the only one in which the step's workflow can own the job."""
    image: str
    """The image, with a tag other than latest or a digest."""
    cpu: str = Field(default="8", pattern=r"^\d+(\.\d+)?m?$")
    """CPUs per pod."""
    memory: str = Field(default="64Gi", pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")
    """Memory per pod; /dev/shm counts against it."""
    gpus: int = Field(default=1, ge=0)
    """GPUs per pod."""
    gpu_type: str = "nvidia.com/gpu"
    """The resource name of the GPUs."""
    pool: dict[str, str] = Field(default={})
    """Labels that a node must have (`nodeSelector`)."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Tolerations of node taints."""
    service_account: str = "blip-worker"
    """The service account of the pods; carries the workload identity with access to the store."""
    queue: str = ""
    """The Kueue LocalQueue that admits the job; empty for none."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours of running after which the cluster ends the job."""
    env: dict[str, str] = Field(default={})
    """Further environment variables, which must hold no secrets."""

    @field_validator("image")
    @classmethod
    def names_one_build(cls, image: str) -> str:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            raise ValueError("must name one build: give a tag other than latest, or a digest")
        return image

    @field_validator("env")
    @classmethod
    def has_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        secrets = sorted(name for name in env if SENSITIVE.search(name.upper()))
        if secrets:
            raise ValueError(
                f"{', '.join(secrets)} would be readable in the job: put the value into the Secret blip and refer to it"
            )
        passwords = sorted(name for name, value in env.items() if USERINFO.search(value))
        if passwords:
            raise ValueError(
                f"the password in {', '.join(passwords)} would be readable in the job: put it into the Secret blip"
            )
        return env


class JobConfig(PodConfig):
    """A job to submit."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)
    """The prefix of the job's name; a fingerprint of the request follows, so that equal requests share one job."""
    args: tuple[str, ...] = ()
    """The arguments after `python -m MODULE` in every process."""

    def metadata(self, spec: KubernetesObject, component: str, owner: KubernetesObject | None) -> KubernetesObject:
        """Returns the metadata of the job: labels, queue, and owner; a job is deleted with its owner."""
        labels = labels_of(component)
        if self.queue:
            labels["kueue.x-k8s.io/queue-name"] = self.queue
        annotations = {SPEC_ANNOTATION: hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]}
        metadata: KubernetesObject = {"name": self.name, "labels": labels, "annotations": annotations}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if owner:
            metadata["ownerReferences"] = [owner]
        return metadata

    def resources(self) -> KubernetesObject:
        """Returns requests equal to limits: such pods (QoS class Guaranteed) are evicted last."""
        amounts = {"cpu": self.cpu, "memory": self.memory}
        if self.gpus:
            amounts[self.gpu_type] = str(self.gpus)
        return {"requests": amounts, "limits": dict(amounts)}

    def environment(self) -> list[KubernetesObject]:
        """Returns the environment of a container: plain variables by value, settings and secrets by reference."""
        plain: list[KubernetesObject] = [{"name": name, "value": value} for name, value in sorted(self.env.items())]
        return plain + references("configMapKeyRef", SETTINGS) + references("secretKeyRef", SECRETS)

    def placement(self) -> KubernetesObject:
        """Returns the fields of a pod's specification for its service account, nodes and tolerations."""
        placed: KubernetesObject = {"serviceAccountName": self.service_account}
        if self.pool:
            placed["nodeSelector"] = self.pool
        if self.tolerations:
            placed["tolerations"] = list(self.tolerations)
        return placed

    def deadline(self) -> KubernetesObject:
        """Returns the field for `max_hours`, if it is set."""
        return {"activeDeadlineSeconds": int(self.max_hours * 3600)} if self.max_hours else {}


def labels_of(component: str) -> dict[str, str]:
    """Returns the labels of a pod: those that network policies select by, and one that refuses Istio's sidecar.

    A job with a sidecar never ends.
    """
    names = {"app.kubernetes.io/part-of": "blip", "app.kubernetes.io/component": component}
    return names | {"sidecar.istio.io/inject": "false"}


def references(kind: str, keys: dict[str, str]) -> list[KubernetesObject]:
    """Returns environment variables that refer to keys of the Secret or ConfigMap `blip`."""
    sources = {name: {kind: {"name": "blip", "key": key, "optional": True}} for name, key in keys.items()}
    return [{"name": name, "valueFrom": source} for name, source in sources.items()]
