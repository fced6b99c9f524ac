"""The pod of a step in Kubeflow Pipelines, and a check by the restricted pod security standard."""

from typing import Any

Tree = dict[str, Any]
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The compiler's security context of a step's containers from 2.17 on; the step sets the user of `main`."""
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""The kinds of volumes that the standard allows."""


def step_pod(executor: Tree) -> Tree:
    """Returns a step's pod, given the step's part of the compiled platform specification."""
    own = {"name": "main", "securityContext": {**CONTAINER, **executor.get("securityContext", {})}}
    system = {"securityContext": {**CONTAINER, "runAsNonRoot": True}}
    return {
        "securityContext": {"seccompProfile": CONTAINER["seccompProfile"]},
        "initContainers": [{**system, "name": "init"}, {**system, "name": "kfp-launcher"}],
        "containers": [own, {**system, "name": "wait"}],
        "volumes": [{"name": mount["volumeName"], "emptyDir": {}} for mount in executor.get("emptyDirMounts", [])],
    }


def refusals(pod: Tree) -> list[str]:
    """Returns the violations of the restricted standard in a pod's specification, a line each."""
    whole = pod.get("securityContext", {})
    found = [f"pod: {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    for container in pod.get("initContainers", []) + pod["containers"]:
        own, name = container.get("securityContext", {}), container["name"]
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            found.append(f"{name}: runAsNonRoot != true")
        if int(own.get("runAsUser", whole.get("runAsUser", 1))) == 0:
            found.append(f"{name}: runAsUser = 0")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: allowPrivilegeEscalation != false")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            found.append(f"{name}: unrestricted capabilities")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append(f"{name}: added capabilities")
        if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            found.append(f"{name}: seccompProfile")
        if own.get("privileged"):
            found.append(f"{name}: privileged")
    return found
