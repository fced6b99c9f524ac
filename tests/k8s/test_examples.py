"""The overlays that README.md spells out, built as a reader would."""

import re
import shutil
import subprocess

import pytest
import yaml
from rendered import K8S, needs_kubectl, pods
from test_network import CONTROL, STEP, allowed

from blip.launch.job import labels_of

pytestmark = needs_kubectl

EXAMPLES = re.findall(
    r"^    apiVersion: kustomize.*?(?=^\S)", (K8S / "README.md").read_text(), re.MULTILINE | re.DOTALL
)


def built(text: str, tmp_path) -> list[dict]:
    """Builds an example as k8s/overlays/mine."""
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(re.sub("^    ", "", text, flags=re.MULTILINE))
    made = subprocess.run(["kubectl", "kustomize", str(mine)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [thing for thing in yaml.safe_load_all(made.stdout) if thing]


def test_the_page_has_two_examples():
    assert [bool(re.search("MY-PROFILE", example)) for example in EXAMPLES] == [False, True]


def test_what_an_owner_of_eks_must_say_takes_the_place_of_every_blank(tmp_path):
    things = built(EXAMPLES[0], tmp_path)
    text = yaml.safe_dump_all(things)
    assert "REPLACE-ME" not in text
    assert "000000000000" not in text
    assert "unset" not in re.findall(r"image: \S+:(\S+)", text)
    (settings,) = (thing["data"] for thing in things if thing["metadata"]["name"] == "blip" and "data" in thing)
    assert (settings["queue"], settings["weights"]) == ("a100", f"{settings['store']}/weights")


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> list[dict]:
    return built(EXAMPLES[1], tmp_path_factory.mktemp("profile"))


def test_a_profile_has_all_of_it_and_the_control_plane_nothing(profile):
    spaces = {thing["metadata"]["namespace"] for thing in profile if "namespace" in thing["metadata"]}
    assert spaces == {"MY-PROFILE"}
    subjects = [subject for thing in profile for subject in thing.get("subjects", [])]
    assert {(subject["name"], subject["namespace"]) for subject in subjects} == {
        ("default-editor", "MY-PROFILE"),
        ("blip-reaper", "MY-PROFILE"),
    }
    (queue,) = (thing for thing in profile if thing["kind"] == "ClusterQueue")
    assert queue["spec"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "MY-PROFILE"}
    assert "kubeflow-pipelines-backup" not in {thing["metadata"]["name"] for thing in profile}
    for name, pod in pods(profile):
        if not name.startswith("ClusterTrainingRuntime"):
            assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", name


def test_in_a_profile_steps_reach_the_control_plane_and_other_pods_are_left_alone(profile):
    policies = [thing for thing in profile if thing["kind"] == "NetworkPolicy"]
    trainer, worker, mlflow, postgres, reaper = map(labels_of, ("trainer", "worker", "mlflow", "postgres", "reaper"))
    notebook = {"app": "notebook"}

    def may(source: dict, target: dict, port: int) -> bool:
        return allowed(policies, source, target, port, here="MY-PROFILE")

    assert may(STEP, CONTROL, 8887)
    assert may(CONTROL, mlflow, 5000)
    for client in (STEP, trainer, worker):
        assert may(client, mlflow, 5000)
        assert not may(client, postgres, 5432)
    assert may(mlflow, postgres, 5432)
    assert may(trainer, trainer, 29500)
    for target in (mlflow, postgres, trainer, reaper):
        assert not may(notebook, target, 5000)
    assert may(notebook, {"app": "another"}, 80), "what is not ours is ruled by others"
    dns = [thing["spec"]["podSelector"] for thing in policies if thing["metadata"]["name"].startswith("names")]
    assert {"matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]} in dns
