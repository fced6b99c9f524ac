"""A pipeline on Kubeflow Pipelines: published as a version, run once, or run on a schedule."""

import contextlib
import hashlib
import io
import json
import os
import ssl
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import kfp_server_api as api
import urllib3.exceptions
import yaml
from kfp import Client, compiler
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp.dsl.graph_component import GraphComponent

from components.revision import revision
from pipelines import cron, lint

EXPERIMENT = "blip"
PAGE = 100
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR")
"""States that a run does not leave."""
POLL = 5.0
"""Seconds between two questions how a run is."""
TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""Where a pod that may speak to Kubeflow Pipelines finds its projected token, unless KF_PIPELINES_SA_TOKEN_PATH says otherwise."""


class ClusterError(RuntimeError):
    """Kubeflow Pipelines cannot do it; the message says what is missing or wrong, and the way out."""


class PassingError(Exception):
    """Kubeflow Pipelines does not answer now and may later."""


@contextlib.contextmanager
def unsaid() -> Iterator[None]:
    """kfp prints links of its own, to pages that its host may not have."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Cluster:
    """Kubeflow Pipelines, where the environment says it is.

    KFP_HOST is its address; without one it is sought from inside the cluster, then by way of the kubeconfig (KUBECONFIG, KFP_CONTEXT).
    KFP_TOKEN authenticates, else in a pod its service account. KFP_NAMESPACE is for installations of several users, KFP_CA_FILE for
    certificates of one's own.
    """

    def __init__(self) -> None:
        self.host = os.environ.get("KFP_HOST", "").rstrip("/")
        self.namespace = os.environ.get("KFP_NAMESPACE") or None
        self.client = connect(self.host, self.namespace)

    @unsaid()
    def publish(self, pipeline: GraphComponent) -> tuple[str, str]:
        """Makes the pipeline's newest version what it is here, and returns the ids of pipeline and version.

        The same pipeline from the same revision is the same version; a superseded one is uploaded anew, since schedules take the newest.
        """
        with package(pipeline) as (path, version):
            identity = self.known(str(pipeline.name))
            if not identity:
                identity = self.client.upload_pipeline(
                    str(path), str(pipeline.name), namespace=self.namespace
                ).pipeline_id
            listed = (
                self.client.list_pipeline_versions(
                    identity, page_size=PAGE, sort_by="created_at desc"
                ).pipeline_versions
                or []
            )
            names = [one.display_name for one in listed]
            if names and names[0].startswith(version):
                return identity, listed[0].pipeline_version_id
            free = version if version not in names else f"{version}.{sum(name.startswith(version) for name in names)}"
            return identity, self.client.upload_pipeline_version(str(path), free, identity).pipeline_version_id

    def known(self, name: str) -> str | None:
        """The id of the pipeline of that name."""
        found = self.client.list_pipelines(namespace=self.namespace, filter=called(name)).pipelines
        return found[0].pipeline_id if found else None

    @unsaid()
    def submit(self, pipeline: GraphComponent, arguments: dict[str, Any], again: Collection[str] = ()) -> str:
        """Runs the pipeline once and returns the id of the run; steps named in `again` are not taken from the cache.

        The switch is no part of a version: schedules take the newest one, and are to go on with their caches.
        """
        require(pipeline, arguments)
        name = f"{pipeline.name} {revision()}"
        if again:
            with package(pipeline) as (path, _):
                path.write_text(without_cache(path.read_text(), again))
                return self.client.run_pipeline(self.experiment(), name, str(path), params=arguments).run_id
        identity, version = self.publish(pipeline)
        run = self.client.run_pipeline(
            self.experiment(), name, params=arguments, pipeline_id=identity, version_id=version
        )
        return run.run_id

    def wait(self, run: str, seconds: float) -> str:
        """Returns the state in which a run ends, however it ends. Raises ClusterError for one that goes on after so many seconds.

        kfp's own call waits for ever for a run that was cancelled, and ends with the first answer that fails.
        """
        until, state = time.monotonic() + seconds, "not known"
        while True:
            with contextlib.suppress(PassingError):
                state = self.state(run)
            if state in ENDED:
                return state
            if time.monotonic() > until:
                page = f"{self.host}/#/runs/details/{run}"
                raise ClusterError(
                    f"run {run} is {state} after {seconds / 3600:g} hours and goes on: see {page}, or wait longer (--wait)"
                )
            time.sleep(min(POLL, max(0.0, until - time.monotonic())))

    def state(self, run: str) -> str:
        """Returns a run's state now. Raises PassingError where Kubeflow Pipelines is away or busy."""
        try:
            return str(self.client.get_run(run).state).upper()
        except api.ApiException as error:
            status = error.status or 0
            if status == 401:
                self.client = connect(self.host, self.namespace)  # with a token that has not run out
            elif 400 <= status < 500 and status != 429:
                raise
            raise PassingError from None
        except urllib3.exceptions.HTTPError:
            raise PassingError from None

    def schedule(self, pipeline: GraphComponent, name: str, when: str, arguments: dict[str, Any]) -> str:
        """Runs the pipeline's newest version again and again, and returns the schedule's id.

        One run goes at a time, and none makes up for times that were missed. A schedule of the same name gives way to the new one.
        """
        when = cron.check(when)
        require(pipeline, arguments)
        identity, _ = self.publish(pipeline)
        former = self.schedules(name)
        made = self.client._recurring_run_api.recurring_run_service_create_recurring_run(
            # kfp's own call insists on a version, and would run that one for ever
            recurring_run=api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=self.experiment(),
                namespace=self.namespace,
                mode=api.RecurringRunMode.ENABLE,
                max_concurrency="1",
                no_catchup=True,
                trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=when)),
                pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=identity),
                runtime_config=api.V2beta1RuntimeConfig(parameters=arguments),
            )
        )
        for one in former:
            self.client.delete_recurring_run(one.recurring_run_id)
        return made.recurring_run_id

    def schedules(self, name: str = "") -> list[Any]:
        """The schedules of this project, or those of one name."""
        wanted = called(name) if name else None
        return (
            self.client.list_recurring_runs(
                experiment_id=self.experiment(), page_size=PAGE, filter=wanted
            ).recurring_runs
            or []
        )

    def named(self, name: str) -> list[Any]:
        """The schedules of one name. Raises ClusterError where there is none."""
        if found := self.schedules(name):
            return found
        raise ClusterError(
            f"there is no schedule {name}; there are: {', '.join(one.display_name for one in self.schedules()) or 'none'}"
        )

    def pause(self, name: str) -> None:
        for one in self.named(name):
            self.client.disable_recurring_run(one.recurring_run_id)

    def resume(self, name: str) -> None:
        for one in self.named(name):
            self.client.enable_recurring_run(one.recurring_run_id)

    def delete(self, name: str) -> None:
        for one in self.named(name):
            self.client.delete_recurring_run(one.recurring_run_id)

    @unsaid()
    def experiment(self) -> str:
        return self.client.create_experiment(EXPERIMENT, namespace=self.namespace).experiment_id


def connect(host: str, namespace: str | None) -> Any:
    """A `kfp.Client`, whose answers have no types that could be checked. Raises ClusterError where there is no way to a server."""
    warnings.filterwarnings("ignore", module="kfp")
    token = os.environ.get("KFP_TOKEN")
    projected = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN)).is_file()
    kubeconfig = Path(os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)[0]).expanduser()
    if host:
        probe(host)
    elif "KUBERNETES_SERVICE_HOST" not in os.environ and not kubeconfig.is_file():
        raise ClusterError(
            f"no way to Kubeflow Pipelines: give KFP_HOST=https://..., or a kubeconfig (there is none at {kubeconfig})"
        )
    return Client(
        host or None,
        namespace=namespace or "kubeflow",
        existing_token=token,
        credentials=ServiceAccountTokenVolumeCredentials() if projected and not token else None,
        kube_context=os.environ.get("KFP_CONTEXT"),
        ssl_ca_cert=os.environ.get("KFP_CA_FILE"),
    )


def probe(host: str) -> None:
    """Asks whether anybody answers, in seconds: kfp would try for half a minute. Raises ClusterError."""
    if not host.startswith(("http://", "https://")):
        raise ClusterError(f"KFP_HOST={host} must begin with http:// or https://")
    try:
        trusted = ssl.create_default_context(cafile=os.environ.get("KFP_CA_FILE"))
        urlopen(f"{host}/apis/v2beta1/healthz", timeout=10, context=trusted).close()
    except HTTPError:
        return  # it answers; whether it lets us in is for the token to say
    except OSError as error:
        raise ClusterError(f"Kubeflow Pipelines at {host} does not answer ({error}): correct KFP_HOST") from None


def called(name: str) -> str:
    """A filter for what is shown under a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


@contextlib.contextmanager
def package(pipeline: GraphComponent) -> Iterator[tuple[Path, str]]:
    """The pipeline as a file, and the name of its version: the code's revision and the digest of what was compiled."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        text = path.read_text()
        if faults := lint.faults(text):
            raise ClusterError("\n".join(faults))
        content = json.dumps(list(yaml.safe_load_all(text)), sort_keys=True)
        yield path, f"{revision()}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def without_cache(text: str, names: Collection[str]) -> str:
    """A compiled pipeline in which the steps of those names are not cached, wherever they are: kfp's switch leaves out nested ones."""
    spec, *platform = yaml.safe_load_all(text)
    groups = [spec["root"], *spec["components"].values()]
    for group in groups:
        for task in group.get("dag", {}).get("tasks", {}).values():
            if task["taskInfo"]["name"] in names:
                task["cachingOptions"] = {}
    return yaml.safe_dump_all([spec, *platform], sort_keys=False)


def require(pipeline: GraphComponent, arguments: dict[str, Any]) -> None:
    """Raises ClusterError where a parameter without a default is missing: the run would fail in its first step."""
    if missing := [name for name in pipeline.required_inputs if not arguments.get(name)]:
        raise ClusterError(f"{pipeline.name} needs {', '.join(missing)}: --set {missing[0]}=...")
