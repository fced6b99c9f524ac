import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import yaml
from kfp import Client
from kfp_server_api import ApiException
from kubeflow import ANSWERS, Kubeflow
from typer.testing import CliRunner
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from blip.cli import app
from blip.launch.kubeflow import CONTROLLER, KubeflowError
from components.image import image
from components.revision import revision
from pipelines import __main__ as command
from pipelines.bootstrap import bootstrap
from pipelines.cluster import KubeflowPipelines
from pipelines.parameters import ParameterError, steps
from pipelines.retrain import retrain

STORE = {"store": "s3://bucket/blip"}
RETRAINED = ["--set", "store=s3://b", "--set", "preset=base", "--set", "ingest.data.web=s3://b/web/"]
TARS = {"preset": "base", "overrides": ["ingest.data.web=s3://bucket/web/"]}


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubeflow]:
    """Kubeflow Pipelines in memory, to which the environment points."""
    server = Kubeflow()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name in (
        "KFP_TOKEN",
        "KFP_NAMESPACE",
        "KFP_CONTEXT",
        "KFP_CA_FILE",
        "KUBERNETES_SERVICE_HOST",
        "KF_PIPELINES_SA_TOKEN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KFP_HOST", server.uri)
    yield server
    server.shutdown()
    server.server_close()


def test_submit_publishes_a_version_and_runs_it(kubeflow):
    run = KubeflowPipelines().submit(bootstrap, STORE)
    (made,) = kubeflow.runs
    newest = kubeflow.newest(kubeflow.pipelines[0]["pipeline_id"])
    assert made["run_id"] == run
    assert made["pipeline_version_reference"]["pipeline_version_id"] == newest["pipeline_version_id"]
    assert newest["display_name"].startswith(revision())
    spec, platform = kubeflow.uploaded[-1]
    assert spec["pipelineInfo"]["name"] == "bootstrap"
    assert "kubernetes" in platform["platforms"]


def test_a_run_has_all_parameters_so_that_a_clone_shows_them_and_a_schedule_only_those_that_were_given(kubeflow):
    KubeflowPipelines().submit(bootstrap, {**STORE, "placement": "a100"})
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    assert kubeflow.runs[0]["runtime_config"]["parameters"] == {
        **STORE,
        "source": "shapes",
        "preset": "shapes",
        "overrides": [],
        "name": "blip",
        "placement": "a100",
        "max_gpu_hours": 0.0,
    }
    assert kubeflow.recurring[0]["runtime_config"]["parameters"] == STORE, "the newest version's defaults hold"


def test_a_version_has_an_image_and_no_parameter_of_it(kubeflow):
    KubeflowPipelines().submit(bootstrap, STORE)
    spec, _ = kubeflow.uploaded[-1]
    containers = [executor["container"] for executor in spec["deploymentSpec"]["executors"].values()]
    variables = [{entry["name"]: entry["value"] for entry in container["env"]} for container in containers]
    assert {container["image"] for container in containers} == {of["BLIP_IMAGE"] for of in variables} == {image()}
    assert not {"image", "revision"} & spec["root"]["inputDefinitions"]["parameters"].keys()


def test_the_same_pipeline_is_published_once(kubeflow):
    for _ in range(2):
        KubeflowPipelines().submit(bootstrap, STORE)
    assert len(kubeflow.pipelines) == 1
    assert sum(version["display_name"].startswith(revision()) for version in kubeflow.versions) == 1
    assert len(kubeflow.runs) == 2


def test_going_back_to_an_older_version_makes_it_the_newest(kubeflow, monkeypatch):
    identity, first = KubeflowPipelines().publish(bootstrap)
    monkeypatch.setenv("BLIP_REVISION", "newer")
    _, second = KubeflowPipelines().publish(bootstrap)
    monkeypatch.undo()
    monkeypatch.setenv("KFP_HOST", kubeflow.uri)
    _, third = KubeflowPipelines().publish(bootstrap)
    assert len({first, second, third}) == 3
    assert kubeflow.newest(identity)["pipeline_version_id"] == third


def test_a_version_is_found_among_more_than_a_page_of_others(kubeflow):
    identity, _ = KubeflowPipelines().publish(bootstrap)
    ours = kubeflow.versions[0]["display_name"]
    others = [kubeflow.new("pipeline_version", display_name=f"v{i}", pipeline_id=identity) for i in range(250)]
    kubeflow.versions += others
    KubeflowPipelines().publish(bootstrap)
    assert kubeflow.newest(identity)["display_name"] == f"{ours}.1"


def test_of_two_versions_of_the_same_second_neither_counts_as_the_newest(kubeflow):
    identity, first = KubeflowPipelines().publish(bootstrap)
    other = kubeflow.new("pipeline_version", display_name="other", pipeline_id=identity)
    kubeflow.versions.insert(0, {**other, "created_at": kubeflow.versions[0]["created_at"]})
    _, second = KubeflowPipelines().publish(bootstrap)
    assert second != first
    assert kubeflow.newest(identity)["pipeline_version_id"] == second
    assert KubeflowPipelines().publish(bootstrap) == (identity, second)


def test_a_schedule_takes_the_newest_version_one_run_at_a_time_and_makes_up_for_nothing(kubeflow):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    (made,) = kubeflow.recurring
    assert made["pipeline_version_reference"] == {"pipeline_id": kubeflow.pipelines[0]["pipeline_id"]}
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 0"
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["runtime_config"]["parameters"] == STORE


def test_a_schedule_replaces_that_of_the_same_name_alone(kubeflow):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    KubeflowPipelines().schedule(bootstrap, "nightly", "0 0 3 * * *", STORE)
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 4 * * 0", STORE)
    assert {one["display_name"]: one["trigger"]["cron_schedule"]["cron"] for one in kubeflow.recurring} == {
        "nightly": "0 0 3 * * *",
        "weekly": "0 0 4 * * 0",
    }
    assert len(kubeflow.recurring) == 2


def a_run_of(kubeflow: Kubeflow) -> str:
    """An active run of the newest schedule."""
    (schedule,) = kubeflow.recurring
    kubeflow.runs.append(kubeflow.new("run", recurring_run_id=schedule["recurring_run_id"], state="RUNNING"))
    return kubeflow.runs[-1]["run_id"]


@pytest.mark.parametrize("again", ["schedule", "delete"])
def test_a_run_outlives_its_schedule(kubeflow, again):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    run = a_run_of(kubeflow)
    if again == "schedule":
        KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 4 * * 0", STORE)
    else:
        KubeflowPipelines().delete("weekly")
    assert [one["run_id"] for one in kubeflow.runs] == [run]
    assert len(kubeflow.orphaned) == 1


def test_the_old_schedule_is_off_before_the_new_one_is_on(kubeflow):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    kubeflow.calls.clear()
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 4 * * 0", STORE)
    changes = [call for call in kubeflow.calls if "recurringruns" in call and "GET" not in call]
    changes = [call.rpartition("/")[2].rpartition(":")[2] for call in changes]
    assert changes[:2] == ["disable", "recurringruns"]
    assert [one["status"] for one in kubeflow.recurring] == ["ENABLED"]


def test_the_old_schedule_goes_on_where_the_new_one_is_refused(kubeflow, monkeypatch):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    monkeypatch.setattr(KubeflowPipelines, "create", refuse)
    with pytest.raises(ApiException):
        KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 4 * * 0", STORE)
    (old,) = kubeflow.recurring
    assert old["status"] == "ENABLED"


def refuse(*_):
    raise ApiException(status=400)


def test_a_schedule_made_by_hand_at_intervals_is_listed(kubeflow):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    kubeflow.recurring[0]["trigger"] = {"periodic_schedule": {"interval_second": "3600"}}
    shown = CliRunner().invoke(command.app, ["list"])
    assert "every 3600 s" in shown.output
    assert shown.exit_code == 0


def test_a_schedule_of_our_pipeline_made_by_hand_in_another_experiment_is_ours_and_others_are_not(kubeflow):
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    (ours,) = kubeflow.recurring
    elsewhere = {**ours, "display_name": "by hand", "recurring_run_id": "by-hand", "experiment_id": "default"}
    theirs = {"recurring_run_id": "other", "pipeline_version_reference": {"pipeline_id": "somebody's"}}
    other = {**elsewhere, **theirs, "display_name": "other"}
    own_text = {**other, "display_name": "uploaded", "pipeline_version_reference": None}
    others = [{**other, "display_name": f"other {i}"} for i in range(150)]
    kubeflow.recurring += [*others, elsewhere, own_text]
    shown = CliRunner().invoke(command.app, ["list"]).output
    assert [name in shown for name in ("weekly", "by hand", "other", "uploaded")] == [True, True, False, False]
    assert CliRunner().invoke(command.app, ["pause", "by hand"]).exception is None
    assert [one["display_name"] for one in kubeflow.recurring if one["status"] == "DISABLED"] == ["by hand"]


def test_looking_at_schedules_creates_nothing(kubeflow):
    assert CliRunner().invoke(command.app, ["list"]).exit_code == 0
    assert kubeflow.experiments == []


def test_schedules_are_listed_paused_resumed_and_deleted(kubeflow):
    said = CliRunner().invoke(command.app, ["schedule", "0 0 3 * * 0", "--name", "weekly", *RETRAINED])
    assert "weekly runs at 0 0 3 * * 0" in said.output
    assert {spec["pipelineInfo"]["name"] for spec, _ in kubeflow.uploaded} == {"retrain"}, (
        "a bootstrap would come from the cache"
    )
    CliRunner().invoke(command.app, ["pause", "weekly"])
    assert kubeflow.recurring[0]["status"] == "DISABLED"
    shown = CliRunner().invoke(command.app, ["list"]).output
    assert [shown.count(word) for word in ("weekly", "0 0 3 * * 0", "DISABLED", "2026-01-01")] == [1, 1, 1, 1]
    CliRunner().invoke(command.app, ["resume", "weekly"])
    assert kubeflow.recurring[0]["status"] == "ENABLED"
    CliRunner().invoke(command.app, ["delete", "weekly"])
    assert kubeflow.recurring == []


@pytest.mark.usefixtures("kubeflow")
def test_an_unknown_schedule_is_named_with_the_known_ones():
    KubeflowPipelines().schedule(bootstrap, "weekly", "0 0 3 * * 0", STORE)
    with pytest.raises(KubeflowError, match="there is no schedule daily; there are: weekly"):
        KubeflowPipelines().pause("daily")


def test_submit_and_wait_end_as_the_run_does(kubeflow, monkeypatch):
    said = CliRunner().invoke(command.app, ["submit", "--set", "store=s3://b", "--wait", "1"])
    assert said.exit_code == 0
    assert f"{kubeflow.uri}/#/runs/details/{kubeflow.runs[0]['run_id']}" in said.output
    monkeypatch.setattr(KubeflowPipelines, "wait", lambda *_: "FAILED")
    assert CliRunner().invoke(command.app, ["submit", "--set", "store=s3://b", "--wait", "1"]).exit_code == 1


def the_run(kubeflow, *states: str) -> str:
    """Submits a run that passes through given states."""
    run = KubeflowPipelines().submit(bootstrap, STORE)
    kubeflow.runs[-1] = Advancing(kubeflow.runs[-1], list(states))
    return run


class Advancing(dict):
    def __init__(self, run: dict, states: list[str]):
        super().__init__(run)
        self.states = states

    def items(self):
        self["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return super().items()


@pytest.mark.parametrize("end", ["CANCELED", "FAILED", "SKIPPED", "SUCCEEDED"])
def test_a_wait_ends_however_the_run_ends(kubeflow, monkeypatch, end):
    monkeypatch.setattr("pipelines.cluster.STATE_POLL_SECONDS", 0.01)
    assert KubeflowPipelines().wait(the_run(kubeflow, "PENDING", "RUNNING", "CANCELING", end), 60) == end


def test_a_terminated_run_is_not_called_failed(kubeflow):
    run = KubeflowPipelines().submit(bootstrap, STORE)
    kubeflow.runs[-1] = {**ANSWERS["run_terminated"], "run_id": run}
    assert kubeflow.runs[-1]["state"] == "FAILED"
    assert KubeflowPipelines().wait(run, 1) == "CANCELED"


def test_a_run_that_nobody_has_reported_on_is_waited_for(kubeflow, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.STATE_POLL_SECONDS", 0.01)
    run = KubeflowPipelines().submit(bootstrap, STORE)
    unreported = {**ANSWERS["run_without_state"], "run_id": run}
    kubeflow.runs[-1] = unreported
    assert "state" not in unreported
    with pytest.raises(KubeflowError, match=f"run {run} is PENDING after"):
        KubeflowPipelines().wait(run, 0.05)


@pytest.mark.usefixtures("kubeflow")
def test_a_run_that_does_not_exist_is_said_in_the_words_of_the_server():
    with pytest.raises(KubeflowError, match=r"answered 404 Not Found: .* Run nope not found"), command.cluster() as kfp:
        kfp.wait("nope", 1)


def test_a_run_that_takes_longer_than_the_wait_is_one_line(kubeflow, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.STATE_POLL_SECONDS", 0.01)
    with pytest.raises(KubeflowError, match=r"run run-\d+ is RUNNING after 2e-05 hours and goes on: see http") as error:
        KubeflowPipelines().wait(the_run(kubeflow, "RUNNING"), 0.072)
    assert "\n" not in str(error.value)


def test_a_wait_survives_answers_that_fail(kubeflow, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.STATE_POLL_SECONDS", 0.01)
    run, waiting = the_run(kubeflow, "SUCCEEDED"), KubeflowPipelines()
    faults = [ApiException(status=503), MaxRetryError(HTTPConnectionPool("h"), "/", None), ApiException(status=401)]
    answer = Client.get_run

    def get_run(self, identity):
        if faults:
            raise faults.pop(0)
        return answer(self, identity)

    monkeypatch.setattr(Client, "get_run", get_run)
    assert waiting.wait(run, 60) == "SUCCEEDED"
    assert not faults


def test_a_run_without_a_store_is_refused_before_anything_is_published(kubeflow):
    with pytest.raises(ParameterError, match="bootstrap needs store: --set store="):
        KubeflowPipelines().submit(bootstrap, {})
    assert kubeflow.pipelines == []


def test_a_retraining_is_told_what_it_lacks_since_no_default_could_work(kubeflow):
    said = CliRunner().invoke(command.app, ["schedule", "0 0 3 * * 0", "--set", "store=s3://b"])
    lacks = "retrain needs preset, overrides: --set preset=..., --set STAGE.KEY=..., such as ingest.data.web="
    assert str(said.exception).startswith(lacks)
    assert kubeflow.recurring == kubeflow.pipelines == []


@pytest.mark.parametrize(
    ("pipeline", "settings", "mistake"),
    [
        ("retrain", ["preset=shapes", "ingest.data.web=s3://b/web/"], "ingest .*unknown key data.web; choices"),
        ("bootstrap", ["source=shaps"], "source 'shaps' is not understood; did you mean shapes"),
        ("bootstrap", ["pretrain.epochz=1", "pretain.epochs=1"], "pretain.epochs=1.*\n.*did you mean epochs"),
        ("blip2", ["pretrain.epochs=1"], "must begin with its stage, one of: ingest, frozen"),
        ("downstream", ["tasks=[vqa]", "vqa.epochs=none"], "vqa .*epochs"),
    ],
)
def test_a_mistake_in_settings_is_told_before_a_schedule_is_made(kubeflow, pipeline, settings, mistake):
    """A run's first step would tell it, in the night of the first Sunday."""
    given = [word for setting in ["store=s3://b", *settings] for word in ("--set", setting)]
    said = CliRunner().invoke(command.app, ["schedule", "0 0 3 * * 0", pipeline, *given])
    assert isinstance(said.exception, ParameterError)
    assert re.search(mistake, str(said.exception)), str(said.exception)
    assert kubeflow.recurring == kubeflow.pipelines == []


def test_what_the_lint_finds_is_not_published(kubeflow, monkeypatch):
    monkeypatch.setattr("pipelines.lint.MAX_PIPELINE_BYTES", 1000)
    with pytest.raises(KubeflowError, match="1,000 is the most"):
        KubeflowPipelines().submit(bootstrap, STORE)
    assert kubeflow.pipelines == []


def test_a_token_of_the_environment_authenticates_and_is_not_said(kubeflow, monkeypatch):
    kubeflow.token = "hunter2"
    with (
        pytest.raises(KubeflowError, match="answered 401 Unauthorized: who are you") as refused,
        command.cluster() as kfp,
    ):
        kfp.schedules()
    monkeypatch.setenv("KFP_TOKEN", "hunter2")
    assert KubeflowPipelines().schedules() == []
    assert "hunter2" not in str(refused.value)


def test_a_pod_speaks_as_its_service_account(kubeflow, monkeypatch, tmp_path):
    kubeflow.token = "projected"
    (tmp_path / "token").write_text("projected", encoding="utf-8")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert KubeflowPipelines().schedules() == []


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: k, cluster: {{server: '{uri}'}}}}]
users: [{{name: me, user: {{token: mine}}}}]
contexts: [{{name: here, context: {{cluster: k, user: me}}}}]
"""


@pytest.fixture
def kubeconfig(kubeflow, monkeypatch, tmp_path):
    """The server is found through a kubeconfig alone."""
    path = tmp_path / "config"
    path.write_text(KUBECONFIG.format(uri=kubeflow.uri), encoding="utf-8")
    monkeypatch.delenv("KFP_HOST")
    monkeypatch.setenv("KUBECONFIG", str(path))
    # the client of Kubernetes reads the variable when it is imported
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    kubeflow.token = "mine"


@pytest.mark.usefixtures("kubeconfig")
def test_a_run_that_was_submitted_through_a_kubeconfig_says_how_to_see_it(kubeflow):
    said = CliRunner().invoke(command.app, ["submit", "--set", "store=s3://b"]).output
    run = kubeflow.runs[0]["run_id"]
    assert f"http://localhost:8080/#/runs/details/{run} (kubectl -n kubeflow port-forward svc/ml-pipeline-ui" in said


@pytest.mark.usefixtures("kubeconfig")
def test_a_kubeconfig_leads_through_the_api_server():
    assert KubeflowPipelines().schedules() == []


@pytest.mark.usefixtures("kubeconfig")
def test_the_namespace_of_a_user_is_not_where_the_servers_are_sought(kubeflow, monkeypatch):
    monkeypatch.setenv("KFP_NAMESPACE", "team-vision")
    KubeflowPipelines().submit(bootstrap, STORE)
    assert kubeflow.experiments[0]["namespace"] == "team-vision"


STOCK = "spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}}"
"""What Kubeflow Pipelines 2.17 installs."""


def doctor() -> tuple[int, list[dict[str, str]]]:
    """Returns the exit code of `blip doctor kfp`, and what it found."""
    said = CliRunner().invoke(app, ["doctor", "kfp", "--json"])
    return said.exit_code, json.loads(said.stdout)["findings"]


@pytest.mark.usefixtures("kubeconfig")
def test_the_doctor_finds_a_controller_that_does_not_retry_lost_nodes(kubeflow):
    kubeflow.config_maps[CONTROLLER] = {"data": {"workflowDefaults": STOCK}}
    code, (_, fault, *_) = doctor()
    assert (code, fault["state"]) == (42, "fault")
    assert "under retryPolicy OnError" in fault["found"]
    assert fault["remedy"] == "kubectl apply --server-side --force-conflicts --field-manager=blip -k k8s/platform"
    ours = yaml.safe_load((Path(__file__).parents[2] / "k8s/platform/workflow-controller.yaml").read_text())
    kubeflow.config_maps[CONTROLLER] = {"data": ours["data"]}
    code, (_, right) = doctor()
    assert (code, right["state"]) == (0, "ok")


@pytest.mark.usefixtures("kubeconfig")
def test_the_doctor_says_what_a_cluster_without_kubeflow_pipelines_lacks(kubeflow, monkeypatch):
    monkeypatch.setenv("KFP_SYSTEM_NAMESPACE", "elsewhere")
    code, (_, lacking) = doctor()
    assert (code, lacking["state"]) == (1, "warning")
    assert lacking["found"] == f"the cluster answered 404 Not Found for ConfigMap elsewhere/{CONTROLLER}"
    monkeypatch.setenv("KFP_HOST", kubeflow.uri)
    code, (answers, lacking) = doctor()
    assert (code, answers["state"], lacking["state"]) == (42, "ok", "fault")


@pytest.mark.usefixtures("kubeflow")
def test_no_way_to_a_cluster_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    with pytest.raises(KubeflowError, match=r"does not answer .*refused"):
        KubeflowPipelines()
    monkeypatch.setenv("KFP_HOST", "127.0.0.1:9")
    with pytest.raises(KubeflowError, match="must begin with http"):
        KubeflowPipelines()
    monkeypatch.delenv("KFP_HOST")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(KubeflowError, match="give KFP_HOST=https://"):
        KubeflowPipelines()


def test_an_expired_token_file_is_read_anew(kubeflow, monkeypatch, tmp_path):
    path: Path = tmp_path / "token"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(path))
    kfp = KubeflowPipelines()
    path.write_text("new", encoding="utf-8")
    kubeflow.token = "new"
    assert kfp.schedules() == []


def test_steps_that_are_to_run_again_are_not_cached_in_that_run_alone(kubeflow):
    KubeflowPipelines().submit(retrain, {**STORE, **TARS})
    published = len(kubeflow.versions)
    said = CliRunner().invoke(command.app, ["submit", "retrain", *RETRAINED, "--again", "capfilt"])
    assert said.exit_code == 0, said.output
    assert CliRunner().invoke(command.app, ["submit", "retrain", *RETRAINED, "--no-cache"]).exit_code == 0
    assert len(kubeflow.versions) == published, "a schedule's newest version keeps its cache"
    one, all_of_them = (made["pipeline_spec"] for made in kubeflow.runs[-2:])
    assert uncached(one) == {"find-new-shards", "plan", "capfilt"}
    assert uncached(all_of_them) == {step.name for step in steps(retrain)}


def uncached(made: dict) -> set[str]:
    spec = made.get("pipeline_spec", made)
    groups = [
        group["dag"]["tasks"].values() for group in [spec["root"], *spec["components"].values()] if "dag" in group
    ]
    tasks = [
        task
        for group in groups
        for task in group
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    ]
    return {task["taskInfo"]["name"] for task in tasks if not task["cachingOptions"].get("enableCache")}


def test_a_step_to_run_again_that_does_not_exist_is_named():
    said = CliRunner().invoke(command.app, ["submit", "--set", "store=s3://b", "--again", "capfild"])
    assert isinstance(said.exception, ParameterError)
    assert "--again capfild: there is no such step; choices: plan, ingest, pretrain" in str(said.exception)
