"""Jobs whose workflow has ended are deleted, even if their step could not."""

import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

import pytest
from kubernetes.client import ApiException

from blip.launch import reaper
from blip.launch.submission import create_or_attach
from blip.launch.trainjob import TrainJobConfig, render_trainjob
from blip.launch.workers import WorkersConfig, render_workers

WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/work/workflows"
COMPLETE = {"type": "Complete", "status": "True"}


def workflow(api, name: str, **state) -> dict:
    """A workflow on the server, as an owner reference."""
    api.objects[f"{WORKFLOWS}/{name}"] = {"metadata": {"uid": name}, "spec": {}, **state}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": name, "uid": name}


def training(owner: dict | None) -> dict:
    asked = {"name": "pretrain", "image": "example/blip:1", "nodes": 2, "processes": 1, "handover": "s3://b/h"}
    return render_trainjob(TrainJobConfig.model_validate(asked), owner)


def workers(owner: dict | None) -> dict:
    return render_workers(WorkersConfig(name="capfilt", image="example/blip:1", workers=2), owner)


ENDED = [
    {"status": {"phase": "Succeeded"}},
    {"status": {"phase": "Failed"}},
    {"status": {"phase": "Error"}},
    {"spec": {"activeDeadlineSeconds": 0}, "status": {"phase": "Running"}},
    {"spec": {"shutdown": "Terminate"}, "status": {"phase": "Running"}},
    {"metadata": {"uid": "another"}, "status": {"phase": "Running"}},
]


@pytest.mark.parametrize("state", ENDED, ids=["succeeded", "failed", "error", "terminated", "stopped", "replaced"])
@pytest.mark.parametrize("job", [training, workers])
def test_a_job_does_not_outlive_its_workflow(api, cluster, job, state):
    owner = workflow(api, "w-1", **state)
    cluster.create(job(owner))
    assert reaper.delete_abandoned(cluster) == [job(owner)["metadata"]["name"]]
    assert list(api.objects) == [f"{WORKFLOWS}/w-1"]


@pytest.mark.parametrize("phase", ["", "Pending", "Running"])
def test_a_job_of_a_workflow_that_goes_on_is_left_alone(api, cluster, phase):
    cluster.create(training(workflow(api, "w-1", status={"phase": phase})))
    cluster.create(workers(workflow(api, "w-2")))
    assert reaper.delete_abandoned(cluster) == []


def test_jobs_that_have_ended_and_jobs_of_nobody_are_left_alone(api, cluster):
    cluster.create({**training(workflow(api, "w-1", status={"phase": "Failed"})), "status": {"conditions": [COMPLETE]}})
    cluster.create(workers(None))
    assert reaper.delete_abandoned(cluster) == []


def test_a_cluster_without_trainjobs_has_its_workers_watched(api, cluster):
    api.kinds = {path for path in api.kinds if "trainjobs" not in path}
    cluster.create(workers(workflow(api, "w-1", status={"phase": "Failed"})))
    assert reaper.delete_abandoned(cluster) == ["capfilt"]


def test_without_the_right_to_read_workflows_nothing_is_deleted(api, cluster):
    cluster.create(training(workflow(api, "w-1", status={"phase": "Failed"})))
    api.faults.extend([0, 403])
    with pytest.raises(ApiException, match="403"):
        reaper.delete_abandoned(cluster)
    assert any("trainjobs" in path for path in api.objects)


def test_a_job_that_a_second_run_attaches_to_lives_as_long_as_either(api, cluster):
    first, second = workflow(api, "w-1"), workflow(api, "w-2")
    cluster.create(training(first))
    create_or_attach(cluster, training(second))
    create_or_attach(cluster, training(second))
    (job,) = (job for path, job in api.objects.items() if "trainjobs" in path)
    assert job["metadata"]["ownerReferences"] == [first, second]
    api.objects[f"{WORKFLOWS}/w-1"]["status"] = {"phase": "Failed"}
    assert reaper.delete_abandoned(cluster) == []
    api.objects[f"{WORKFLOWS}/w-2"]["status"] = {"phase": "Failed"}
    assert reaper.delete_abandoned(cluster) == ["pretrain"]


def until(holds, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_goes_round_and_round_until_it_is_refused(api, cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(reaper, "PAUSE", 0.01)

    def watch() -> None:
        with suppress(ApiException):
            reaper.watch(cluster, tmp_path / "alive")

    watching = Thread(target=watch, daemon=True)
    watching.start()
    for name in ("w-1", "w-2"):
        cluster.create(training(workflow(api, name)))
        until((tmp_path / "alive").exists)
        assert any("trainjobs" in path for path in api.objects)
        api.objects[f"{WORKFLOWS}/{name}"]["status"] = {"phase": "Failed"}
        until(lambda: not any("trainjobs" in path for path in api.objects))
    api.faults.append(403)
    watching.join(10)
    assert not watching.is_alive()


def test_it_is_a_program(api, cluster, tmp_path):
    cluster.create(training(workflow(api, "w-1", status={"phase": "Failed"})))
    command = [sys.executable, "-m", "blip.launch.reaper", str(tmp_path / "alive")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        until((tmp_path / "alive").exists, 60)
        running.terminate()
        said = (running.communicate()[1] or "").splitlines()
    assert [line.partition(" ")[2] for line in said] == [
        "INFO deletes jobs in work whose workflow has ended",
        "WARNING job pretrain is deleted: its workflow has ended",
    ]
