"""The cluster on EKS that README.md makes has what the overlay asks for."""

import json
import re
import subprocess

import pytest
import yaml
from rendered import K8S, build, needs_kubectl, of

pytestmark = needs_kubectl

CLUSTER = yaml.safe_load((K8S / "clusters" / "eks.yaml").read_text())
POOLS = {group["name"]: group for group in CLUSTER["managedNodeGroups"]}


def labels(pool: dict) -> dict[str, str]:
    """Returns the labels of a pool's nodes, as EKS writes them."""
    (kind,) = pool.get("instanceTypes") or [pool["instanceType"]]
    capacity = "SPOT" if pool.get("spot") else "ON_DEMAND"
    return {"node.kubernetes.io/instance-type": kind, "eks.amazonaws.com/capacityType": capacity}


def tolerated(taints: list[dict], tolerations: list[dict]) -> bool:
    return all(
        any(toleration["key"] == taint["key"] and toleration["operator"] == "Exists" for toleration in tolerations)
        for taint in taints
    )


def test_each_flavor_of_the_queue_and_each_placement_has_a_pool():
    gpus = [pool for pool in POOLS.values() if pool.get("taints")]
    assert {pool["maxSize"] for pool in gpus} == {2}
    assert all(pool["minSize"] == pool["desiredCapacity"] == 0 for pool in gpus)
    for flavor in of("eks", "ResourceFlavor").values():
        (pool,) = (pool for pool in gpus if flavor["spec"]["nodeLabels"].items() <= labels(pool).items())
        assert tolerated(pool["taints"], flavor["spec"]["tolerations"])
    placements = yaml.safe_load(of("eks", "ConfigMap")["blip"]["data"]["placements"])
    for name, placement in placements.items():
        (pool,) = (pool for pool in gpus if placement["pool"].items() <= labels(pool).items())
        assert tolerated(pool["taints"], placement["tolerations"]), name


def test_a_pool_has_disk_for_the_largest_scratch_and_the_image():
    runtime = next(thing for thing in build("training") if thing["metadata"]["name"] == "blip-torch-a100")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in job["template"]["spec"]["template"]["spec"]["volumes"]}
    scratch = float(volumes["scratch"]["sizeLimit"].removesuffix("Gi"))
    assert all(pool["volumeSize"] > scratch + 50 for pool in POOLS.values() if pool.get("taints"))


def test_claims_find_their_kind_of_volume_and_accounts_their_role():
    storage = yaml.safe_load((K8S / "clusters" / "gp3.yaml").read_text())
    (claim,) = of("eks", "StatefulSet")["postgres"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == storage["metadata"]["name"]
    assert storage["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    roles = {account.get("roleName") for account in CLUSTER["iam"]["serviceAccounts"]}
    for name in ("blip-worker", "mlflow"):
        (role,) = of("eks", "ServiceAccount")[name]["metadata"]["annotations"].values()
        assert role.rpartition("/")[2] in roles


def test_the_pages_command_lets_the_role_trust_all_four_accounts(tmp_path):
    """The policy as IAM prints it of a role that eksctl made for one account."""
    host = "oidc.eks.us-east-1.amazonaws.com/id/0A"
    condition = {f"{host}:aud": "sts.amazonaws.com", f"{host}:sub": "system:serviceaccount:kubeflow:blip-worker"}
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Condition": {"StringEquals": condition}}]}
    (tmp_path / "trust.json").write_text(json.dumps(policy, indent=4))
    (command,) = re.findall(r"^    (sed -i .* trust\.json)$", (K8S / "README.md").read_text(), re.MULTILINE)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    (statement,) = json.loads((tmp_path / "trust.json").read_text())["Statement"]
    trusted = statement["Condition"]["StringEquals"][f"{host}:sub"]
    assert trusted == [
        f"system:serviceaccount:kubeflow:{name}"
        for name in ("blip-worker", "mlflow", "pipeline-runner", "ml-pipeline-ui")
    ]


@pytest.mark.parametrize("pool", [name for name, pool in POOLS.items() if pool.get("taints")])
def test_ranks_of_a_training_are_in_one_zone(pool: str):
    assert len(POOLS[pool]["availabilityZones"]) == 1
