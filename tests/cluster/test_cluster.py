"""Tests that need a real API server: see README.md beside this file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread, Timer

import boto3
import pytest
import yaml

from blip.launch import kubernetes
from blip.launch.kubernetes import Cluster
from blip.launch.submission import run_job
from blip.launch.trainjob import TrainJobConfig, render_trainjob
from blip.launch.workers import WorkersConfig, workers_on_cluster
from blip.workers.progress import Workers

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("k8s", ".")]

from rendered import OVERLAYS, build  # noqa: E402

if not os.environ.get("BLIP_TEST_CLUSTER"):
    pytest.skip("needs a cluster that is good for nothing else: make test-cluster", allow_module_level=True)

NAMESPACE = "kubeflow"
OLD = {"CronJob": "batch/v1beta1", "PodDisruptionBudget": "policy/v1beta1"}
"""Their API versions in Kubernetes 1.20."""
CUSTOM = {"ClusterTrainingRuntime", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
GROUND = {"ServiceAccount", "Role", "RoleBinding", "PriorityClass", "NetworkPolicy", "ResourceQuota"}
STAND_INS = {"trainer.kubeflow.org": ("TrainJob", "v1alpha1"), "argoproj.io": ("Workflow", "v1alpha1")}
ADDRESS = os.environ.get("BLIP_TEST_ADDRESS", "10.200.0.1")
IMAGE = os.environ.get("BLIP_TEST_IMAGE", "")


def kubectl(*arguments: str, given: object = None) -> str:
    text = None if given is None else yaml.safe_dump_all(given if isinstance(given, list) else [given])
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(holds, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def stand_in(group: str, kind: str, version: str) -> dict:
    """Returns a custom resource definition that accepts any fields."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [{"name": version, "served": True, "storage": True, "subresources": {"status": {}}, "schema": schema}]
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    spec = {"group": group, "names": names, "scope": "Namespaced", "versions": versions}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": spec,
    }


@pytest.fixture(scope="module", autouse=True)
def ground() -> Iterator[None]:
    """Creates the namespace and all objects that are not workloads."""
    things = [thing for thing in build("overlays/local") if thing["kind"] in GROUND]
    kubectl("apply", "-f", "-", given=build("platform"))
    kubectl("apply", "-f", "-", given=things)
    stand_ins = [stand_in(group, kind, version) for group, (kind, version) in STAND_INS.items()]
    kubectl("apply", "-f", "-", given=stand_ins)
    kubectl("wait", "--for=condition=established", *(f"crd/{s['metadata']['name']}" for s in stand_ins))
    yield
    kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(kubernetes, "INTERVAL", 0.5)
    monkeypatch.setattr(kubernetes, "LOG_TIMEOUT", 2.0)
    return Cluster(NAMESPACE)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_would_take_all_manifests(overlay):
    things = [thing for thing in build(f"overlays/{overlay}") if thing["kind"] not in CUSTOM]
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]
    if int(version["minor"].rstrip("+")) < 25:
        things = [{**thing, "apiVersion": OLD.get(thing["kind"], thing["apiVersion"])} for thing in things]
    taken = kubectl("apply", "--dry-run=server", "--validate=false", "-f", "-", given=things)
    assert len(taken.splitlines()) == len(things)
    assert all(line.endswith("(server dry run)") for line in taken.splitlines())


def a_workflow(name: str) -> dict:
    """A workflow, as an owner reference."""
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {},
    }
    kubectl("apply", "-f", "-", given=workflow)
    made = json.loads(kubectl("-n", NAMESPACE, "get", "workflow", name, "-o", "json"))
    return {
        "apiVersion": made["apiVersion"],
        "kind": "Workflow",
        "name": name,
        "uid": made["metadata"]["uid"],
        "blockOwnerDeletion": False,
    }


def a_job(name: str, owner: dict | None = None) -> dict:
    asked = {
        "name": name,
        "image": "example/blip:1",
        "nodes": 2,
        "processes": 8,
        "handover": "s3://bucket/handover",
        "max_hours": 1,
    }
    return render_trainjob(TrainJobConfig.model_validate(asked), owner)


def say(cluster: Cluster, job: dict, kind: str) -> None:
    """Sets a condition of the job, as its controller would."""
    condition = {
        "type": kind,
        "status": "True",
        "reason": "Played",
        "message": "",
        "lastTransitionTime": "2025-01-01T00:00:00Z",
    }
    name = job["metadata"]["name"]
    cluster.objects.patch_namespaced_custom_object_status(
        **cluster.place(job), name=name, body={"status": {"conditions": [condition]}}
    )


def test_a_trainjob_is_submitted_once_and_followed_to_its_end(cluster: Cluster):
    job = a_job("once", a_workflow("w-once"))
    assert cluster.create(job)
    assert not cluster.create(job)
    there = cluster.read(job)
    assert there is not None
    assert there["spec"] == job["spec"]
    Timer(2, say, (cluster, job, "Complete")).start()
    run_job(cluster, job)


def test_a_trainjob_goes_with_its_workflow(cluster: Cluster):
    job = a_job("owned", a_workflow("w-owner"))
    assert cluster.create(job)
    kubectl("-n", NAMESPACE, "delete", "workflow", "w-owner")
    until(lambda: cluster.read(job) is None)


def test_sigterm_cancels_unless_the_workflow_goes_on(cluster: Cluster):
    job = a_job("stopped", a_workflow("w-stopped"))
    for stopped in (False, True):
        if stopped:
            kubectl(
                "-n",
                NAMESPACE,
                "patch",
                "workflow",
                "w-stopped",
                "--type=merge",
                "-p",
                '{"spec": {"activeDeadlineSeconds": 0}}',
            )
        Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(SystemExit):
            run_job(cluster, job)
        if not stopped:
            assert cluster.read(job) is not None
    until(lambda: cluster.read(job) is None)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that this process and pods reach, with the settings and secrets that they need."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=ADDRESS, port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in {**environment, "AWS_DEFAULT_REGION": "us-east-1", "BLIP_TRACKING": "off"}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    metadata = {"name": "blip", "namespace": NAMESPACE}
    settings = {"s3-endpoint": address, "s3-region": "us-east-1"}
    secret = {"access-key": "key", "secret-key": "secret"}
    kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": settings})
    kubectl(
        "apply", "-f", "-", given={"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret}
    )
    yield "s3://bucket"
    server.stop()


SHARDS = 40


def pods(name: str) -> Workers:
    """Returns a placement of three small pods of workers."""
    asked = {"name": name, "image": IMAGE, "workers": 3, "gpus": 0, "cpu": "1", "memory": "2Gi"}
    return workers_on_cluster(
        WorkersConfig.model_validate({**asked, "namespace": NAMESPACE, "shared_memory": "64Mi", "scratch": "2Gi"})
    )


@pytest.mark.skipif(not IMAGE, reason="BLIP_TEST_IMAGE names no image that the cluster has")
@pytest.mark.usefixtures("cluster")
def test_capfilt_loses_nothing_when_a_worker_is_killed(bucket: str, tmp_path: Path):
    from tiny_models import captioner, model_folder, samples, text_filter

    from blip.runs.capfilt import capfilt
    from blip.runs.context import RunContext
    from blip.shards.writing import write_shards
    from blip.storage import open_store

    data = tmp_path / "data"
    (data / "tokenizer").mkdir(parents=True)
    (data / "tokenizer" / "vocab.txt").write_text("[PAD]")
    write_shards(samples(SHARDS * 8), f"{bucket}/shards", "web", 8).save(data / "web.json")
    write_shards(samples(3), f"{bucket}/shards", "gold", 3).save(data / "gold.json")
    models = [model_folder(captioner(), tmp_path / "captioner"), model_folder(text_filter(), tmp_path / "filter")]
    decoding = {"type": "nucleus", "min_length": 4, "max_length": 10}
    stream = {"batch": 4, "decoding": decoding}
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump({"stream": stream, "quality": {"min_side": 16}, "lease": {"seconds": 5}})
    )
    killed: list[int] = []

    def kill_one(store: str) -> None:
        """Kills a busy worker once some shards are done and most are not."""

        def committed() -> int:
            return sum("/commit/" in f"/{key}" for key in open_store(store).list("capfilt/"))

        until(lambda: committed() > 1, 300)
        running = ("--selector=app.kubernetes.io/component=worker", "--field-selector=status.phase=Running")
        names = kubectl("-n", NAMESPACE, "get", "pods", *running, "-o", "name")
        kubectl("-n", NAMESPACE, "delete", names.split()[0], "--grace-period=0", "--force")
        killed.append(committed())

    tables = []
    for name in ("undisturbed", "killed"):
        store, out = f"{bucket}/{name}", tmp_path / name
        killer = Thread(target=kill_one, args=(store,), daemon=True)
        if name == "killed":
            killer.start()
        context = RunContext(preset=str(tmp_path / "tiny.yaml"), store=store)
        capfilt(context, data=data, captioner=models[0], filter=models[1], out=out, workers=pods("capfilt"))
        kept = open_store(store)
        (job,) = {key.split("/")[1] for key in kept.list("capfilt/")}
        commits = [json.loads(kept.get(key)) for key in kept.list(f"capfilt/{job}/commit/")]
        assert len(commits) == SHARDS
        tables.append({record["shard"]: record["sha256"] for record in commits})
    killer.join()
    assert killed[0] < SHARDS, "the worker was killed when all was done"
    assert tables[0] == tables[1]


@pytest.mark.skipif(not IMAGE, reason="BLIP_TEST_IMAGE names no image that the cluster has")
@pytest.mark.usefixtures("cluster")
def test_pods_judge_as_one_process_does(bucket: str, tmp_path: Path):
    from tiny_models import both, model_folder, samples

    from blip.runs.context import RunContext
    from blip.runs.evaluate import evaluate
    from blip.shards.writing import write_shards

    data = tmp_path / "data"
    data.mkdir()
    write_shards(samples(48), f"{bucket}/shards", "test", 4).save(data / "test.json")
    model = model_folder(both(), tmp_path / "model")
    overrides = [
        "evaluation.batch=4",
        "lease.seconds=5",
        "retrieval.rerank=5",
        "retrieval.text.tokens=12",
        "captioning.text.tokens=12",
    ]
    figures = []
    for name, workers in (("alone", None), ("pods", pods("evaluate"))):
        context = RunContext(preset="shapes", overrides=tuple(overrides), store=f"{bucket}/{name}")
        result = evaluate(context, data=data, model=model, out=tmp_path / name, workers=workers)
        figures.append((result.scores, (tmp_path / name / "captions.json").read_bytes()))
    assert figures[0] == figures[1]
