"""The lifecycle of a job, against an API server on the loopback."""

import json
import logging
import os
import signal
import time
from collections import deque
from threading import Thread, Timer

import pytest

from blip.config import ConfigError
from blip.launch import handover, kubernetes, node, trainjob
from blip.launch.handover import fingerprint
from blip.launch.kubernetes import Cluster
from blip.launch.submission import JobError, State, delete_succeeded, run_job, status_of
from blip.launch.trainjob import TrainJobConfig, render_trainjob
from blip.launch.workers import WorkersConfig, workers_on_cluster
from blip.storage import StoreError, open_store
from blip.workers.model import ModelSource
from blip.workers.progress import Tallies, wait_for_workers

WORKFLOW = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "w-1",
    "uid": "u",
    "blockOwnerDeletion": False,
}
COMPLETE, FAILED = (
    {"type": "Complete", "status": "True"},
    {"type": "Failed", "status": "True", "reason": "Broken", "message": "node 1 fell"},
)
SUSPENDED = {"type": "Suspended", "status": "True", "reason": "Queued"}


def a_job(owner=None, **changes) -> dict:
    return render_trainjob(a_config(**changes), owner)


def a_config(**changes) -> TrainJobConfig:
    asked = {
        "name": "pretrain",
        "image": "example/blip:1",
        "args": ("train",),
        "nodes": 2,
        "processes": 1,
        "handover": "s3://b/h",
    }
    return TrainJobConfig.model_validate({**asked, **changes})


def a_pod(name: str, index: int = 0, exit_code: int | None = None, container: str = "node") -> dict:
    state = {"running": {}} if exit_code is None else {"terminated": {"exitCode": exit_code}}
    status = {"name": container, "state": state, "image": "i", "imageID": "i", "ready": True, "restartCount": 0}
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {"name": name, "labels": labels, "creationTimestamp": "2025-01-01T00:00:00Z"}
    return {
        "metadata": metadata,
        "status": {"phase": "Running", "containerStatuses": [status]},
        "spec": {"containers": [{"name": container}]},
    }


def test_a_job_is_submitted_followed_and_its_log_forwarded(api, cluster, capsys, caplog):
    caplog.set_level(logging.INFO)
    api.play.extend([[SUSPENDED], [], [], [COMPLETE]])
    api.pods = [a_pod("node-1", index=1), a_pod("node-0", index=0)]
    first, second = "2025-01-01T00:00:00.000000001Z step 1\n", "2025-01-01T00:00:00.000000002Z step 2\n"
    api.logs = {"node-0": first + second, "node-1": "2025-01-01T00:00:00.000000003Z another rank\n"}
    run_job(cluster, a_job())
    assert capsys.readouterr().out == "step 1\nstep 2\n"
    assert [r.getMessage().removeprefix("job pretrain ") for r in caplog.records] == [
        "waits for its turn (Queued)",
        "runs",
        "succeeded",
    ]
    assert "/apis/trainer.kubeflow.org/v1alpha1/namespaces/work/trainjobs/pretrain" in api.objects


def test_the_same_job_is_attached_to_and_never_doubled(api, cluster):
    cluster.create(a_job())
    api.play.extend([[], [COMPLETE]])
    run_job(cluster, a_job(WORKFLOW))
    assert (len(api.objects), api.saw("DELETE")) == (1, 0)


def test_a_running_job_that_was_asked_for_differently_is_left_alone(api, cluster):
    cluster.create(a_job(nodes=4))
    with pytest.raises(JobError, match="another job of the name pretrain runs: choose another name"):
        run_job(cluster, a_job())
    assert api.saw("DELETE") == 0


def test_a_failed_job_is_replaced_since_it_goes_on_from_its_checkpoints(api, cluster):
    cluster.create(a_job())
    api.play.extend([[FAILED]])
    Timer(0.2, lambda: api.play.append([COMPLETE])).start()
    run_job(cluster, a_job())
    assert (api.saw("DELETE"), len(api.objects)) == (1, 1)


def test_failure_says_what_the_cluster_says(api, cluster):
    api.play.extend([[FAILED]])
    with pytest.raises(
        JobError, match=r"job pretrain failed \(Broken: node 1 fell\).*-l jobset.sigs.k8s.io/jobset-name=pretrain"
    ):
        run_job(cluster, a_job())


def test_a_wrong_configuration_is_neither_retried_nor_resubmitted(api, cluster):
    api.play.extend([[FAILED]])
    api.pods, api.logs = [a_pod("node-0", exit_code=42)], {"node-0": ""}
    for _ in range(2):
        with pytest.raises(ConfigError, match="job pretrain ended with exit code 42"):
            run_job(cluster, a_job())
    assert api.saw("DELETE") == 0


WORKERS = {"name": "capfilt", "image": "example/blip:1", "workers": 2}


def test_workers_are_at_work_until_their_job_ends(api):
    api.play.extend([[], [COMPLETE]])
    with workers_on_cluster(WorkersConfig.model_validate(WORKERS))("s3://b/capfilt/1") as working:
        assert [working(), working()] == [True, False]
    (job,) = api.objects.values()
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["s3://b/capfilt/1"]
    assert "completionMode" not in job["spec"], "the server is too old for it"
    assert api.saw("DELETE") == 0


def test_the_api_server_is_asked_no_more_often_than_the_interval(api, tmp_path, monkeypatch):
    monkeypatch.setattr(kubernetes, "INTERVAL", 0.2)
    api.play.extend([[]] * 5 + [[COMPLETE]])
    began, asked = time.monotonic(), len(api.requests)
    wait_for_workers(
        Tallies.since_now(open_store(tmp_path), 0),
        workers_on_cluster(WorkersConfig.model_validate(WORKERS)),
        0.01,
        lambda: None,
    )
    assert api.play == deque()
    assert time.monotonic() - began >= 5 * 0.2
    assert len(api.requests) - asked < 20


def test_workers_of_an_old_cluster_that_would_try_a_wrong_configuration_again_are_deleted(api):
    api.pods, api.logs = [a_pod("w-0", exit_code=42, container="worker")], {"w-0": ""}
    begin = workers_on_cluster(WorkersConfig.model_validate(WORKERS))
    with begin("s3://b/capfilt/1") as working, pytest.raises(ConfigError, match="exit code 42"):
        working()
    assert not api.objects


def test_workers_end_when_the_step_that_watches_them_fails(api):
    begin = workers_on_cluster(WorkersConfig.model_validate(WORKERS))
    with pytest.raises(ZeroDivisionError), begin("s3://b/capfilt/1"):
        raise ZeroDivisionError
    assert not api.objects


def test_a_training_gets_its_inputs_and_leaves_its_outputs_through_the_store(api, s3, tmp_path, monkeypatch):
    """Acts as the job's nodes once it exists."""
    data, model = tmp_path / "data", tmp_path / "model"
    (data / "tokenizer").mkdir(parents=True)
    (data / "web.json").write_text("shards")
    (data / "tokenizer" / "vocab.txt").write_text("words")

    def train(arguments: list[str]) -> None:
        assert arguments == ["-m", "blip.cli", "train"]
        assert (tmp_path / "node/in/data/tokenizer/vocab.txt").read_text() == "words"
        (tmp_path / "node/out/model").mkdir(exist_ok=True)
        (tmp_path / "node/out/model/config.json").write_text((tmp_path / "node/in/data/web.json").read_text())

    def work() -> None:
        while not api.objects or api.play:
            time.sleep(0.01)
        (job,) = api.objects.values()
        launch, _, store, *options = job["spec"]["trainer"]["command"][1:] + job["spec"]["trainer"]["args"]
        assert launch == "-m"
        node.run_node([store, *(o for o in options if o != "--max-restarts=0")], tmp_path / "node")
        api.play.append([COMPLETE])

    monkeypatch.setattr(node.local, "torchrun", train)
    for _ in range(2):  # a step that was lost when all was done has it done again
        job = Thread(target=work, daemon=True)
        api.objects.clear()
        job.start()
        trainjob.run_trainjob(a_config(handover=f"{s3}/handover"), {"data": data}, {"model": model})
        job.join()
        assert (model / "config.json").read_text() == "shards"
        assert open_store(s3).list() == []
    assert len(api.objects) == 1


def test_what_a_lost_step_did_not_fetch_is_fetched_by_its_next_attempt(api, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(node.local, "torchrun", lambda _: None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/web.json").write_text("shards")
    cfg, inputs = a_config(handover=f"{s3}/handover"), {"data": tmp_path / "data"}
    store = open_store(f"{s3}/handover/{cfg.name}-{fingerprint(inputs, *cfg.args, '')}")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/config.json").write_text("model")
    handover.upload_folders({"model": tmp_path / "made"}, store.join("out"))
    trainjob.run_trainjob(cfg, inputs, {"model": tmp_path / "model"})
    assert (tmp_path / "model/config.json").read_text() == "model"
    assert not api.objects
    assert store.list() == []


def test_a_job_that_succeeded_and_left_nothing_is_created_again(api, cluster):
    job = a_job()
    cluster.create(job)
    delete_succeeded(cluster, job)
    assert len(api.objects) == 1
    api.play.append([COMPLETE])
    delete_succeeded(cluster, job)
    assert not api.objects


@pytest.mark.parametrize(
    "name", ["data/../../../outside/a", "../outside/a", "/outside/a", "data/.hidden", "data//a", "data", "a\0b/c"]
)
@pytest.mark.parametrize("kind", ["index", "job"])
def test_names_that_lead_outside_are_refused_before_any_folder_is_made(tmp_path, s3, name, kind):
    (tmp_path / "there").mkdir()
    if kind == "index":
        store = open_store(tmp_path / "store")
        store.put("index.json", json.dumps({name: "0" * 64}).encode())
        with pytest.raises(StoreError):
            handover.download_folders(store, lambda folder: tmp_path / "there" / folder)
    else:
        with (
            pytest.raises((StoreError, ValueError)),
            ModelSource(digest="d", at=f"{s3}/models", files=(name,)).folder(),
        ):
            pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == (
        ["index.json", "store", "there"] if kind == "index" else ["there"]
    )


@pytest.mark.parametrize("index", ["[1]", "{", '{"a/b": 1}', "3"])
def test_an_index_that_is_none_is_named(tmp_path, index):
    store = open_store(tmp_path)
    store.put("index.json", index.encode())
    with pytest.raises(StoreError, match=r"index\.json is not"):
        handover.download_folders(store, lambda name: tmp_path / name)


def test_a_file_that_is_not_what_was_sent_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/web.json").write_text("shards")
    store = open_store(tmp_path / "store")
    handover.upload_folders({"data": tmp_path / "data"}, store)
    store.put("files/data/web.json", b"other")
    with pytest.raises(StoreError, match=r"files/data/web.json does not match its SHA-256"):
        handover.download_folders(store, lambda name: tmp_path / "there" / name)


def terminate_soon() -> None:
    Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_sigterm_cancels_the_job_with_the_step(api, cluster):
    before = signal.getsignal(signal.SIGTERM)
    terminate_soon()
    with pytest.raises(SystemExit) as ended:
        run_job(cluster, a_job())
    assert ended.value.code == 143
    assert not api.objects
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("workflow", "left"),
    [
        ({"spec": {}}, True),
        ({"spec": {"activeDeadlineSeconds": 0}}, False),
        ({"spec": {"shutdown": "Terminate"}}, False),
        ({"spec": {}, "metadata": {"deletionTimestamp": "2025-01-01T00:00:00Z"}}, False),
    ],
)
def test_sigterm_leaves_a_job_whose_workflow_goes_on(api, cluster, workflow, left):
    api.objects["/apis/argoproj.io/v1alpha1/namespaces/work/workflows/w-1"] = {"metadata": {}, **workflow}
    terminate_soon()
    with pytest.raises(SystemExit):
        run_job(cluster, a_job(WORKFLOW))
    assert any("trainjobs" in path for path in api.objects) is left


def test_the_owner_is_the_workflow_of_the_pod_whatever_its_host_is_called(api, cluster, monkeypatch, tmp_path):
    long = f"retrain-{'x' * 80}"
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w-1", "uid": "u"}
    api.objects[f"/api/v1/namespaces/work/pods/{long}"] = {"metadata": {"name": long, "ownerReferences": [owner]}}
    monkeypatch.setattr(kubernetes, "NAMESPACE_FILE", tmp_path)
    monkeypatch.setenv("HOSTNAME", long[:63])
    monkeypatch.setenv("KFP_POD_NAME", long)
    assert cluster.owner() == WORKFLOW


def test_an_api_server_that_is_away_is_waited_for(api, cluster):
    api.faults.extend([503, 429, 500])
    api.play.extend([[COMPLETE]])
    run_job(cluster, a_job())
    assert len(api.objects) == 1


def test_an_api_server_that_refuses_is_not_asked_twice(api, cluster):
    from kubernetes.client import ApiException

    api.faults.extend([403])
    with pytest.raises(ApiException, match="403"):
        run_job(cluster, a_job())
    assert len(api.requests) == 1


def test_a_job_that_was_deleted_is_not_waited_for(api, cluster):
    Timer(0.2, api.objects.clear).start()
    with pytest.raises(JobError, match="was deleted by another program or person"):
        run_job(cluster, a_job())


def test_without_a_cluster_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no cluster to submit to"):
        Cluster()


def test_status_of_failure_comes_before_all_else():
    assert status_of({"status": {"conditions": [COMPLETE, FAILED]}}).state is State.FAILED
    assert status_of({"status": {"conditions": [{**FAILED, "status": "False"}]}}).state is State.RUNNING
    assert status_of({}).state is State.RUNNING
