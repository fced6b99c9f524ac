"""TrainJobs, checked against Kubeflow Trainer's published models."""

import json

import pytest
import yaml

from blip.config import ConfigError, validate
from blip.launch.trainjob import TrainJobConfig, render_trainjob

IMAGE = "example/blip@sha256:" + "0" * 64
OWNER = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "bootstrap-x1",
    "uid": "u-1",
    "blockOwnerDeletion": False,
}


def a_config(**changes) -> TrainJobConfig:
    asked = {
        "name": "bootstrap-x1-pretrain",
        "image": IMAGE,
        "args": ["train", "pretrain"],
        "handover": "s3://bucket/handover",
        "nodes": 2,
        "processes": 8,
        "gpus": 8,
        "cpu": "88",
        "memory": "900Gi",
        "pool": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "env": {"NCCL_DEBUG": "WARN"},
        **changes,
    }
    return validate(TrainJobConfig, asked, "the job")


def test_job_passes_through_the_published_models_unchanged():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    job = render_trainjob(a_config(queue="a100", max_hours=72), OWNER)
    assert models.TrainerV1alpha1TrainJob.from_json(json.dumps(job)).to_dict() == job


def test_job_says_who_trains_where_and_for_how_long():
    job = render_trainjob(a_config(queue="a100", max_hours=72), OWNER)
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 2, 8)
    assert trainer["command"] == [
        "python",
        "-m",
        "blip.launch.node",
        "s3://bucket/handover",
        "--max-restarts=0",
        "-m",
        "blip.cli",
    ]
    assert trainer["args"] == ["train", "pretrain"]
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "88", "memory": "900Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"]["requests"] == trainer["resourcesPerNode"]["limits"]
    assert spec["activeDeadlineSeconds"] == 72 * 3600
    pod = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert job["metadata"]["ownerReferences"] == [OWNER]


def test_only_a_queued_job_begins_suspended():
    queued, free = render_trainjob(a_config(queue="a100")), render_trainjob(a_config())
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "a100"
    assert "suspend" not in free["spec"]
    assert "kueue.x-k8s.io/queue-name" not in free["metadata"]["labels"]


def test_threads_share_the_cpus_of_a_node():
    def threads(**changes):
        return {e["name"]: e.get("value") for e in render_trainjob(a_config(**changes))["spec"]["trainer"]["env"]}[
            "OMP_NUM_THREADS"
        ]

    assert threads() == "11"
    assert threads(cpu="500m", processes=1, gpus=0) == "1"


def test_credentials_are_references():
    env = {e["name"]: e for e in render_trainjob(a_config())["spec"]["trainer"]["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "blip",
        "key": "secret-key",
        "optional": True,
    }
    assert env["MLFLOW_TRACKING_URI"]["valueFrom"]["configMapKeyRef"]["key"] == "mlflow-tracking-uri"
    assert env["NCCL_DEBUG"]["value"] == "WARN"


def test_what_was_asked_for_decides_the_digest_and_the_owner_does_not():
    def digest(owner=None, **changes):
        return render_trainjob(a_config(**changes), owner)["metadata"]["annotations"]["blip.internal/spec"]

    assert digest(OWNER) == digest()
    assert digest(nodes=4) != digest()


def test_a_cpu_job_asks_for_no_gpu():
    resources = render_trainjob(a_config(gpus=0, runtime="blip-torch-cpu"))["spec"]["trainer"]["resourcesPerNode"]
    assert resources["limits"] == {"cpu": "88", "memory": "900Gi"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "example/blip"}, "image: must name one build"),
        ({"image": "example.io:5000/blip:latest"}, "image: must name one build"),
        ({"name": "Pretrain_1"}, "name"),
        ({"name": "a" * 41}, "name"),
        ({"memory": "16GB"}, "memory"),
        ({"env": {"MY_API_TOKEN": "x"}}, "MY_API_TOKEN would be readable"),
        (
            {"env": {"MLFLOW_TRACKING_URI": "http://ann:pw@host"}},
            "the password in MLFLOW_TRACKING_URI would be readable",
        ),
        ({"nodes": 0}, "nodes"),
        ({"handover": "/mnt/folder"}, "handover"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_submitted(changes, message):
    with pytest.raises(ConfigError, match=message):
        a_config(**changes)


def test_numbers_that_a_pipeline_passes_as_text_are_numbers():
    assert a_config(nodes="2", gpus="8").nodes == 2


def test_job_reads_back_from_yaml():
    job = render_trainjob(a_config())
    assert yaml.safe_load(yaml.safe_dump(job)) == job
