"""The Job of pull workers, checked against the schemas of Kubernetes."""

import pytest

from blip.launch.workers import WorkersConfig, render_workers


def a_config(**changes) -> WorkersConfig:
    asked = {
        "name": "capfilt-x1",
        "image": "example/blip:3f2a1b0",
        "args": ("capfilt", "work"),
        "workers": 32,
        **changes,
    }
    return WorkersConfig.model_validate(asked)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_job_fits_the_schema(indexed, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(
        render_workers(a_config(queue="a100", max_hours=5), indexed=indexed), version, strict=True
    )


@pytest.mark.parametrize("indexed", [True, False])
def test_only_a_queued_job_begins_suspended_and_is_admitted_whole(indexed):
    queued, free = render_workers(a_config(queue="a100"), indexed=indexed), render_workers(a_config(), indexed=indexed)
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "a100"
    assert queued["spec"]["parallelism"] == 32
    assert not any(name.startswith("kueue.x-k8s.io/") for name in queued["metadata"]["annotations"]), "no partial one"
    assert "suspend" not in free["spec"]
    assert "kueue.x-k8s.io/queue-name" not in free["metadata"]["labels"]


def test_a_lost_node_is_free_and_a_wrong_configuration_final():
    spec = render_workers(a_config())["spec"]
    final, free = spec["podFailurePolicy"]["rules"]
    assert (final["action"], final["onExitCodes"]["values"], final["onExitCodes"]["containerName"]) == (
        "FailJob",
        [42],
        "worker",
    )
    assert (free["action"], free["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (spec["completions"], spec["parallelism"], spec["maxFailedIndexes"]) == (32, 32, 3)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_an_old_cluster_gets_a_plain_job_of_as_many_workers():
    spec = render_workers(a_config(), indexed=False)["spec"]
    assert spec["parallelism"] == 32
    assert (
        not {"completions", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "maxFailedIndexes"}
        & spec.keys()
    )
    assert spec["backoffLimit"] >= 32
    assert spec["template"] == render_workers(a_config())["spec"]["template"]


def test_a_worker_may_do_nothing_but_work():
    pod = render_workers(a_config())["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert mounted.keys() == {"/scratch", "/tmp", "/dev/shm"}
    assert {v["name"] for v in pod["volumes"]} == set(mounted.values())
