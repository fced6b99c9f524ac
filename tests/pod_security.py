"""The restricted pod security standard, as the API server of Kubernetes evaluates it for a pod that is created."""

from typing import Any

Spec = dict[str, Any]

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = ("RuntimeDefault", "Localhost")


def violations(pod: Spec) -> list[str]:
    """Returns what the restricted standard refuses in a pod's specification, a line each."""
    found = [f"pod: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    whole = pod.get("securityContext", {})
    found += [f"pod: {fault}" for fault in common_faults(whole)]
    if whole.get("sysctls"):
        found.append("pod: sysctls")
    for container in pod.get("initContainers", []) + pod["containers"]:
        found += [f"container {container['name'] or 'main'}: {fault}" for fault in container_faults(container, whole)]
    return found


def common_faults(context: Spec) -> list[str]:
    """Returns faults of fields that pods and containers share, where they are set."""
    found = []
    if context.get("runAsUser") == 0:
        found.append("runAsUser is 0")
    if context.get("runAsNonRoot") is False:
        found.append("runAsNonRoot is false")
    if "seccompProfile" in context and context["seccompProfile"]["type"] not in SECCOMP:
        found.append(f"seccompProfile is {context['seccompProfile']['type']}")
    return found


def container_faults(container: Spec, whole: Spec) -> list[str]:
    """Returns faults of a container; what it leaves open holds as its pod says."""
    own = container.get("securityContext", {})
    found = common_faults(own)
    if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
        found.append("runAsNonRoot is not true")
    if own.get("seccompProfile", whole.get("seccompProfile")) is None:
        found.append("no seccompProfile")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if own.get("privileged"):
        found.append("privileged")
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        found.append("keeps capabilities")
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        found.append(f"adds capabilities {capabilities['add']}")
    if own.get("procMount", "Default") != "Default":
        found.append("procMount")
    if any(port.get("hostPort") for port in container.get("ports", [])):
        found.append("hostPort")
    return found
