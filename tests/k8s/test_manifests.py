"""The manifests build, match the schemas of old and new Kubernetes, fit together, and grant no more than needed."""

import json
import re
from fnmatch import fnmatchcase

import pytest
import yaml
from pod_security import violations
from rendered import K8S, OVERLAYS, build, containers, needs_kubectl, of, pods, secrets

from blip.data.loader import CACHE_VARIABLE
from blip.launch import job as jobs
from blip.launch import reaper
from blip.launch.resources import PLACEMENTS, QUEUE, Resources
from blip.launch.workers import WorkersConfig
from blip.models.weights.mirror import VARIABLE
from pipelines import placement

kubernetes_validate = pytest.importorskip("kubernetes_validate")

VERSIONS = ("1.31", "1.37")
"""The oldest and the newest Kubernetes that is supported."""
OTHERS = {"ClusterTrainingRuntime", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
"""Kinds of Kubeflow Trainer and Kueue, which Kubernetes has no schema of."""
IMAGE = re.compile(r"(?P<name>[a-z0-9-]+(/[a-z0-9-]+)?):(?P<tag>[\w.-]+)")

pytestmark = needs_kubectl


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema(overlay, version):
    for thing in build(f"overlays/{overlay}"):
        if thing["kind"] in OTHERS:
            continue
        kubernetes_validate.validate(
            thing, version, strict=True
        )  # raises SchemaNotFoundError for a kind that it does not know


@pytest.mark.parametrize("name", ["blip-torch-a100", "blip-torch-cpu"])
def test_training_runtimes_pass_through_the_published_models_unchanged(name):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    (runtime,) = (thing for thing in build("training") if thing["metadata"]["name"] == name)
    assert models.TrainerV1alpha1ClusterTrainingRuntime.from_json(json.dumps(runtime)).to_dict() == runtime


def test_training_survives_lost_nodes_and_not_wrong_configurations():
    for runtime in build("training"):
        spec = runtime["spec"]["template"]["spec"]
        (job,) = spec["replicatedJobs"]
        final, lost = job["template"]["spec"]["podFailurePolicy"]["rules"]
        assert final["onExitCodes"] == {"containerName": "node", "operator": "In", "values": [42]}
        assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        stop, again = spec["failurePolicy"]["rules"]
        assert (stop["action"], again["action"]) == ("FailJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        # as the Job controller writes them
        configuration = (
            "Container node for pod kubeflow/p-node-0-0-x failed with exit code 42 matching FailJob rule at index 0"
        )
        disruption = "Pod kubeflow/p-node-0-0-x has condition DisruptionTarget matching FailJob rule at index 1"
        patterns = [rule["onJobFailureMessagePatterns"][0] for rule in (stop, again)]
        assert [[bool(re.search(p, message)) for p in patterns] for message in (configuration, disruption)] == [
            [True, False],
            [False, True],
        ]
        assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]) for rule in (stop, again))
        assert job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_pass_the_restricted_standard(overlay):
    for name, pod in pods(build(f"overlays/{overlay}")):
        assert violations(pod["spec"]) == [], name
        assert pod["spec"]["securityContext"]["runAsUser"] > 0, name
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def test_the_namespace_enforces_the_restricted_standard():
    (namespace,) = (thing for thing in build("platform") if thing["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_deleting_an_overlay_deletes_nothing_that_it_did_not_make(overlay):
    """`kubectl delete -k` takes whatever an overlay names: a namespace takes Kubeflow Pipelines, its database and all
    volumes along.
    """
    named = {(thing["kind"], thing["metadata"]["name"]) for thing in build(f"overlays/{overlay}")}
    platform = {(thing["kind"], thing["metadata"]["name"]) for thing in build("platform") + build("artifacts")}
    assert not named & platform
    assert not {kind for kind, _ in named} & {
        "Namespace",
        "PersistentVolumeClaim",
        "PersistentVolume",
        "CustomResourceDefinition",
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_servers_of_kubeflow_pipelines_are_under_no_limit_of_ours(overlay):
    """Kubeflow's pods state no limits: a LimitRange would set ours, and a quota for all pods would refuse them."""
    assert not of(overlay, "LimitRange")
    classes = of(overlay, "PriorityClass").keys()
    for name, quota in of(overlay, "ResourceQuota").items():
        if not quota["spec"]["hard"].keys() <= {"requests.nvidia.com/gpu", "count/jobs.batch"}:
            (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
            assert (scope["scopeName"], scope["operator"]) == ("PriorityClass", "In"), name
            assert set(scope["values"]) <= classes, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_go_through_the_queue_that_the_overlay_has(overlay):
    queues = list(of(overlay, "LocalQueue"))
    assert of(overlay, "ConfigMap")["blip"]["data"]["queue"] == (queues[0] if queues else "")


@pytest.mark.parametrize("overlay", ["gke", "eks"])
def test_what_the_queue_starts_whole_no_quota_refuses_a_part_of(overlay):
    """A job that gets some of its pods holds their GPUs, and its ranks wait for the others until they time out."""
    queue = of(overlay, "ClusterQueue")["blip"]["spec"]
    (group,) = queue["resourceGroups"]
    total: dict[str, float] = {}
    for flavor in group["flavors"]:
        for resource in flavor["resources"]:
            name = resource["name"]
            total[name] = total.get(name, 0) + amount(resource["nominalQuota"])
    hard = {
        key: value for quota in of(overlay, "ResourceQuota").values() for key, value in quota["spec"]["hard"].items()
    }
    for name, quantity in total.items():
        assert amount(hard[f"requests.{name}"]) >= quantity, name


@pytest.mark.parametrize("overlay", ["gke", "eks"])
def test_two_nodes_of_each_placement_fit_into_a_flavor_of_the_queue(overlay):
    """A job that asks for more than a flavor has is never admitted, and waits for ever."""
    (group,) = of(overlay, "ClusterQueue")["blip"]["spec"]["resourceGroups"]
    placements = yaml.safe_load(of(overlay, "ConfigMap")["blip"]["data"]["placements"])
    assert placements
    for name, asked in placements.items():
        for flavor in group["flavors"]:
            has = {resource["name"]: amount(resource["nominalQuota"]) for resource in flavor["resources"]}
            assert 2 * asked["gpus"] <= has["nvidia.com/gpu"], name
            assert 2 * asked["cpu"] <= has["cpu"], name
            assert 2 * amount(asked["memory"]) <= has["memory"], name


def amount(quantity: str) -> float:
    """Returns a quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(Ti|Gi)?", quantity).groups()  # pyright: ignore
    return float(number) * {"Ti": 2**40, "Gi": 2**30, None: 1}[unit]


@pytest.mark.parametrize("overlay", ["gke", "eks"])
def test_the_placements_of_an_overlay_are_the_nodes_of_its_queue(overlay, monkeypatch):
    text = of(overlay, "ConfigMap")["blip"]["data"]["placements"]
    monkeypatch.setenv(PLACEMENTS, text)
    flavors = of(overlay, "ResourceFlavor")
    names = yaml.safe_load(text)
    assert {"a100", "a100-spot", "a100x8", "a100x8-spot"} == names.keys()
    for name in names:
        placed = Resources.of(name).placement
        flavor = flavors["a100-spot" if name.endswith("-spot") else "a100"]["spec"]
        assert (placed.pool, [*placed.tolerations]) == (flavor["nodeLabels"], flavor["tolerations"]), name


def test_the_queue_hangs_on_no_label_that_an_upgrade_removes():
    (queue,) = (thing for thing in build("queue") if thing["kind"] == "ClusterQueue")
    assert queue["spec"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}


LOST = [
    "Pod was terminated in response to imminent node shutdown.",
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi",
    "Preempted by a pod of higher priority",
    "OOMKilled (exit code 137)",
    "Error (exit code 137)",
    "pod deleted",
]
"""Messages of the workflow controller for attempts that failed through no fault of the step."""


def test_steps_that_lose_their_node_are_tried_again_and_those_that_fail_by_themselves_are_not():
    (controller,) = (thing for thing in build("platform") if thing["kind"] == "ConfigMap")
    defaults = yaml.safe_load(controller["data"]["workflowDefaults"])
    retries = defaults["spec"]["templateDefaults"]["retryStrategy"]
    assert retries["retryPolicy"] == "Always"
    on_errors, _, pattern = retries["expression"].partition(" or lastRetry.message matches ")
    assert on_errors == "lastRetry.status == 'Error'"
    assert [message for message in LOST if not re.search(pattern.strip("'"), message)] == []
    assert not re.search(pattern.strip("'"), "Error (exit code 1)")


def test_steps_artifacts_go_to_our_store_by_the_keys_of_our_secret_below_a_folder_with_retention():
    (launcher,) = build("artifacts")
    assert (launcher["metadata"]["name"], launcher["metadata"]["namespace"]) == ("kfp-launcher", "kubeflow")
    settings = of("gke", "ConfigMap")["blip"]["data"]
    store, _, folder = launcher["data"]["defaultPipelineRoot"].rpartition("/")
    assert store == settings["store"]
    assert folder in {rule.partition("=")[0] for rule in settings["kept-days"].split()}
    stated = yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]
    (service,) = (name for name, found in of("gke", "Service").items() if found["spec"]["ports"][0]["port"] == 8333)
    assert stated["endpoint"] == f"http://{service}.kubeflow:8333"
    assert (stated["disableSSL"], stated["region"]) == (True, settings["s3-region"])
    found = stated["credentials"]["secretRef"]
    assert {found["accessKeyKey"], found["secretKeyKey"]} == secrets()[found["secretName"]]


def test_the_command_that_names_s3_as_the_root_of_pipelines_is_sound():
    page = (K8S / "README.md").read_text()
    (patch,) = re.findall(r"patch configmap kfp-launcher --field-manager=blip .*? -p '(.*?)'$", page, re.M | re.DOTALL)
    data = json.loads(patch.replace("\\\n", " "))["data"]
    assert data["defaultPipelineRoot"] == "s3://MY-BUCKET/blip/kfp"
    stated = yaml.safe_load(data["providers"])["s3"]["default"]
    assert stated == {"endpoint": "s3.amazonaws.com", "region": "us-east-1", "credentials": {"fromEnv": True}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_copies_of_shards_fit_into_the_scratch_of_whoever_reads_them(overlay):
    cache = float(of(overlay, "ConfigMap")["blip"]["data"][jobs.SETTINGS[CACHE_VARIABLE]]) * 1e9
    sizes = [placement.SCRATCH, WorkersConfig.model_fields["scratch"].default]
    for _, pod in pods(build("training")):
        sizes += [v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if v["name"] == "scratch"]
    assert len(sizes) == 4
    assert min(map(amount, sizes)) > 1.5 * cache, "weights and a checkpoint lie there, too"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_name_a_build_and_no_registry(overlay):
    for name, pod in pods(build(f"overlays/{overlay}")):
        for container in containers(pod):
            image = IMAGE.fullmatch(container["image"])
            assert image, f"{name}: {container['image']}"
            assert image["tag"] != "latest", name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_have_probes_and_all_have_limits(overlay):
    for name, pod in pods(build(f"overlays/{overlay}")):
        for container in containers(pod):
            if name.startswith(("Deployment", "StatefulSet")):
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
            if not name.startswith("ClusterTrainingRuntime"):  # there the job says how much
                assert container["resources"].keys() == {"requests", "limits"}, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_reaper_may_talk_to_the_api_server_and_is_probed_by_the_file_that_it_touches(overlay):
    pod = of(overlay, "Deployment")["blip-reaper"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is True
    *command, alive = container["command"]
    assert command == ["python", "-m", reaper.__name__]
    probes = [container[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")]
    assert all(f"find {alive} " in " ".join(probe) for probe in probes)
    assert alive.rpartition("/")[0] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_mlflow_is_probed_as_its_clients_reach_it():
    """/health answers even if the server refuses its own name or has lost its database."""
    (container,) = of("local", "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]
    probe, env = container["readinessProbe"]["httpGet"], {e["name"]: e.get("value") for e in container["env"]}
    (host,) = (h["value"] for h in probe["httpHeaders"] if h["name"] == "Host")
    uri = of("local", "ConfigMap")["blip"]["data"]["mlflow-tracking-uri"]
    assert f"http://{host}:" in uri
    hosts = (env["MLFLOW_SERVER_ALLOWED_HOSTS"] or "").split(",")
    assert host in hosts
    assert not [
        h for h in hosts if fnmatchcase("mlflow.evil.example", h) or fnmatchcase("mlflow.kubeflow.evil.example:5000", h)
    ]
    assert probe["path"] == "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert (env["MLFLOW_BACKEND_STORE_URI"] or "").startswith("postgresql+psycopg2://")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_is_there(overlay):
    settings = {name: set(thing["data"]) for name, thing in of(overlay, "ConfigMap").items()}
    keys = {"configMapKeyRef": settings, "secretKeyRef": secrets()}
    for name, pod in pods(build(f"overlays/{overlay}")):
        spec = pod["spec"]
        assert spec.get("priorityClassName", "blip-batch") in of(overlay, "PriorityClass"), name
        assert spec.get("serviceAccountName", "blip-worker") in of(overlay, "ServiceAccount"), name
        stateful = of(overlay, "StatefulSet").get(name.split()[1], {"spec": {}})["spec"]
        claims = {claim["metadata"]["name"] for claim in stateful.get("volumeClaimTemplates", [])}
        volumes = {v["name"] for v in spec.get("volumes", [])} | claims
        assert {v["configMap"]["name"] for v in spec.get("volumes", []) if "configMap" in v} <= settings.keys(), name
        for container in containers(pod):
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes, name
            for variable in container.get("env", []):
                for kind, found in variable.get("valueFrom", {}).items():
                    if kind == "fieldRef":  # to the pod itself
                        continue
                    there = found["key"] in keys[kind].get(found["name"], set())
                    assert there or found.get("optional"), f"{name}: {variable['name']}"
    roles, bindings = of(overlay, "Role"), of(overlay, "RoleBinding")
    assert {binding["roleRef"]["name"] for binding in bindings.values()} == roles.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_what_they_are_meant_for(overlay):
    templates = [(pod["metadata"]["labels"], pod["spec"]) for _, pod in pods(build(f"overlays/{overlay}"))]
    for name, service in of(overlay, "Service").items():
        found = [spec for labels, spec in templates if service["spec"]["selector"].items() <= labels.items()]
        assert len(found) == 1, f"service {name}"
        ports = {port.get("name") for container in found[0]["containers"] for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, f"service {name}"
    for name, budget in of(overlay, "PodDisruptionBudget").items():
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert any(wanted.items() <= labels.items() for labels, _ in templates), f"budget {name}"


def granted(role: dict) -> dict[tuple[str, str], set[str]]:
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_a_step_may_do_what_launching_a_job_takes_and_no_more():
    assert granted(of("local", "Role")["blip-launcher"]) == {
        ("trainer.kubeflow.org", "trainjobs"): {"create", "get", "patch", "delete"},
        ("batch", "jobs"): {"create", "get", "patch", "delete"},
        ("", "pods"): {"get", "list"},
        ("", "pods/log"): {"get"},
        ("argoproj.io", "workflows"): {"get"},
    }
    assert granted(of("local", "Role")["blip-reaper"]) == {
        ("trainer.kubeflow.org", "trainjobs"): {"list", "delete"},
        ("batch", "jobs"): {"list", "delete"},
        ("argoproj.io", "workflows"): {"get"},
    }
    for overlay in OVERLAYS:
        assert not of(overlay, "ClusterRole")
        assert all(
            account["automountServiceAccountToken"] is False for account in of(overlay, "ServiceAccount").values()
        )


def test_names_are_the_same_wherever_they_are_written():
    example, settings = secrets(), set(of("local", "ConfigMap")["blip"]["data"])
    assert {key: name for name, key in jobs.SECRETS.items()} == placement.SECRET_VARIABLES
    assert {key: name for name, key in jobs.STEP_SETTINGS.items()} == placement.CONFIG_VARIABLES
    assert set(jobs.SECRETS.values()) == example[placement.SECRET]
    assert set(jobs.STEP_SETTINGS.values()) <= settings | {"s3-endpoint", "placements"}, (
        "S3 itself needs no endpoint, one node no placement of its own"
    )
    assert jobs.STEP_SETTINGS[QUEUE] == "queue"
    assert jobs.SETTINGS[VARIABLE] == "weights"
    assert "blip-worker" in of("local", "ServiceAccount")
    assert {thing["metadata"]["name"] for thing in build("training")} >= {"blip-torch-a100"}
