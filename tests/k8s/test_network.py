"""Which pods may connect in the namespace, by evaluating the network policies as network plug-ins do."""

import pytest
from rendered import OVERLAYS, needs_kubectl, of

from blip.launch.job import labels_of

pytestmark = needs_kubectl

STEP = {"workflows.argoproj.io/workflow": "w"}
CONTROL = {"application-crd-id": "kubeflow-pipelines"}


def matches(selector: dict, labels: dict) -> bool:
    for rule in selector.get("matchExpressions", []):
        value, values = labels.get(rule["key"]), rule.get("values", [])
        holds = {"In": value in values, "NotIn": value not in values, "Exists": value is not None}[rule["operator"]]
        if not holds:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def allowed(policies: list[dict], source: dict, target: dict, port: int, here: str = "kubeflow") -> bool:
    """Returns whether these policies of a namespace allow a connection: both its egress and its ingress must be.

    Pods of the control plane lie in `kubeflow`, all others in the namespace `here`.
    """

    def reaches(peer: dict, labels: dict) -> bool:
        home = "kubeflow" if CONTROL.items() <= labels.items() else here
        if "podSelector" not in peer or not matches(peer["podSelector"], labels):
            return False
        if "namespaceSelector" not in peer:
            return home == here
        return matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": home})

    def passes(direction: str, peers: str, pod: dict, there: dict) -> bool:
        if here != "kubeflow" and CONTROL.items() <= pod.items():
            return True  # no policy of this namespace rules it
        ruling = [
            p["spec"]
            for p in policies
            if matches(p["spec"]["podSelector"], pod) and direction in p["spec"]["policyTypes"]
        ]
        rules = [rule for spec in ruling for rule in spec.get(direction.lower(), [])]
        return not ruling or any(
            any(reaches(peer, there) for peer in rule[peers])
            and any(p["port"] == port for p in rule.get("ports", [{"port": port}]))
            for rule in rules
        )

    return passes("Egress", "to", source, target) and passes("Ingress", "from", target, source)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_talk_to_whom_they_must_and_to_nobody_else(overlay):
    policies = list(of(overlay, "NetworkPolicy").values())
    trainer, worker, mlflow, postgres, backup, store = (
        labels_of(c) for c in ("trainer", "worker", "mlflow", "postgres", "backup", "store")
    )
    for client in (STEP, trainer, worker):
        assert allowed(policies, client, mlflow, 5000)
        assert not allowed(policies, client, postgres, 5432)
        assert allowed(policies, client, store, 8333) is (overlay in ("local", "gke"))
    assert allowed(policies, mlflow, postgres, 5432)
    assert allowed(policies, backup, postgres, 5432)
    assert allowed(policies, backup, {**CONTROL, "app": "mysql"}, 3306)
    assert not allowed(policies, worker, {**CONTROL, "app": "mysql"}, 3306)
    for client in (mlflow, backup, labels_of("retention"), {**CONTROL, "app": "ml-pipeline-ui"}):
        assert allowed(policies, client, store, 8333) is (overlay in ("local", "gke"))
    assert not allowed(policies, {**CONTROL, "app": "mysql"}, store, 8333)
    assert allowed(policies, trainer, trainer, 29500)
    assert not allowed(policies, worker, trainer, 29500)
    assert not allowed(policies, {"app": "stranger"}, mlflow, 5000)
    assert not allowed(policies, trainer, {"app": "stranger"}, 80)
    assert allowed(policies, STEP, CONTROL, 8887)
    assert allowed(policies, CONTROL, CONTROL, 3306), "the control plane keeps to its own policies"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_outside_only_the_store_and_the_api_server_are_reached(overlay):
    for name, policy in of(overlay, "NetworkPolicy").items():
        for rule in policy["spec"].get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            ports = {port["port"] for port in rule.get("ports", [])}
            if any(block["cidr"] == "0.0.0.0/0" for block in blocks):
                assert ports <= {443, 6443}, name
                assert ports, name
                assert all("169.254.0.0/16" in block["except"] for block in blocks), (
                    f"{name}: the nodes' credentials lie there"
                )
