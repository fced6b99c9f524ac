"""Pipelines on Kubeflow Pipelines: publishing a version, a single run, and schedules."""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import kfp_server_api as api
import urllib3.exceptions
from kfp.dsl.graph_component import GraphComponent

from blip.launch.kubeflow import KubeflowError, system_namespace
from components.revision import revision
from pipelines import cron
from pipelines.connection import connect
from pipelines.package import package, without_cache
from pipelines.parameters import defaults, require

EXPERIMENT = "blip"
PAGE_SIZE = 100
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR")
"""The final states of a run."""
STATE_POLL_SECONDS = 5.0
"""Seconds between two requests for the state of a run."""


class TransientError(Exception):
    """Kubeflow Pipelines does not answer, and a retry may succeed."""


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hides kfp's output within the context: links to pages that the host may not have."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class KubeflowPipelines:
    """A client of Kubeflow Pipelines, configured by the environment.

    KFP_HOST is the address; without it, the service inside the cluster is used, then the kubeconfig (KUBECONFIG,
    KFP_CONTEXT). KFP_TOKEN authenticates, otherwise the service account of the pod. KFP_NAMESPACE is the user's
    namespace in a multi-user installation; the servers' own is `kubeflow` unless KFP_SYSTEM_NAMESPACE says otherwise.
    KFP_CA_FILE is for private certificates. `pipelines` are the names of the pipelines whose schedules count as this
    project's, whatever their experiment; the form of the interface chooses another one.
    """

    def __init__(self, pipelines: Sequence[str] = ()) -> None:
        self.pipelines = pipelines
        self.host = os.environ.get("KFP_HOST", "").rstrip("/")
        self.namespace = os.environ.get("KFP_NAMESPACE") or None
        self.client = connect(self.host)

    @silenced()
    def publish(self, pipeline: GraphComponent) -> tuple[str, str]:
        """Publishes the pipeline as its newest version, and returns the ids of pipeline and version.

        The same pipeline at the same revision is the same version. An older version is uploaded again, since schedules
        run the newest.
        """
        with package(pipeline) as (path, version):
            identity = self.pipeline_id(str(pipeline.name)) or self.create_pipeline(str(pipeline.name))
            listed = self.versions(identity)
            # times have whole seconds: of versions of the same second any may be the newest
            newest = [entry for entry in listed if entry.created_at == listed[0].created_at]
            if newest and all(is_named(entry, version) for entry in newest):
                return identity, newest[0].pipeline_version_id
            count = sum(is_named(entry, version) for entry in listed)
            free_name = f"{version}.{count}" if count else version
            return identity, self.client.upload_pipeline_version(str(path), free_name, identity).pipeline_version_id

    def versions(self, pipeline: str) -> list[Any]:
        """Returns all versions of the pipeline of this id, the newest first."""
        found, token = [], ""
        while True:
            page = self.client.list_pipeline_versions(
                pipeline, page_token=token, page_size=PAGE_SIZE, sort_by="created_at desc"
            )
            found += page.pipeline_versions or []
            token = page.next_page_token
            if not token:
                return found

    def create_pipeline(self, name: str) -> str:
        """Creates a pipeline without a version, and returns its id.

        kfp's own call uploads a version with it, which would be as new as the first version of ours.
        """
        made = self.client._pipelines_api.pipeline_service_create_pipeline(
            pipeline=api.V2beta1Pipeline(display_name=name, namespace=self.namespace)
        )
        return made.pipeline_id

    def pipeline_id(self, name: str) -> str | None:
        """Returns the id of the pipeline of that name, or None if there is none."""
        found = self.client.list_pipelines(namespace=self.namespace, filter=name_filter(name)).pipelines
        return found[0].pipeline_id if found else None

    @silenced()
    def submit(self, pipeline: GraphComponent, arguments: dict[str, Any], again: Collection[str] = ()) -> str:
        """Runs the pipeline once and returns the run's id; steps named in `again` are not taken from the cache.

        Defaults are sent, too: the interface shows those of a run that it clones only if they were.
        With `again`, the pipeline is not published: schedules run the newest version, which must keep its caching.
        """
        require(pipeline, arguments)
        arguments = {**defaults(pipeline), **arguments}
        name = f"{pipeline.name} {revision()}"
        if again:
            with package(pipeline) as (path, _):
                text = path.read_text(encoding="utf-8")
                path.write_text(without_cache(text, again), encoding="utf-8")
                return self.client.run_pipeline(self.experiment(), name, str(path), params=arguments).run_id
        identity, version = self.publish(pipeline)
        run = self.client.run_pipeline(
            self.experiment(), name, params=arguments, pipeline_id=identity, version_id=version
        )
        return run.run_id

    def wait(self, run: str, seconds: float) -> str:
        """Waits for a run to end and returns its final state. Raises KubeflowError if it runs longer than `seconds`.

        kfp's own call never returns for a run that was cancelled, and raises at the first failed request.
        """
        deadline, state = time.monotonic() + seconds, "not known"
        while True:
            with contextlib.suppress(TransientError):
                state = self.state(run)
            if state in FINAL_STATES:
                return state
            if time.monotonic() > deadline:
                hours = f"{seconds / 3600:g} hours"
                raise KubeflowError(
                    f"run {run} is {state} after {hours} and goes on: see {self.page(run)}, or wait longer (--wait)"
                )
            time.sleep(min(STATE_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def page(self, run: str) -> str:
        """Returns the address of a run's page, and without KFP_HOST the command that makes it one."""
        path = f"/#/runs/details/{run}"
        if self.host:
            return f"{self.host}{path}"
        forward = f"kubectl -n {system_namespace()} port-forward svc/ml-pipeline-ui 8080:80"
        return f"http://localhost:8080{path} ({forward})"

    def state(self, run: str) -> str:
        """Returns a run's current state. Raises TransientError if Kubeflow Pipelines is unavailable or overloaded.

        A run that was terminated is CANCELED; the server itself says FAILED, after its workflow.
        """
        try:
            found = self.client.get_run(run)
        except api.ApiException as error:
            status = error.status or 0
            if status == 401:
                self.client = connect(self.host)  # with a fresh token
            elif 400 <= status < 500 and status != 429:
                raise
            raise TransientError from None
        except urllib3.exceptions.HTTPError:
            raise TransientError from None
        # a run has none between its start and its first report
        state = str(found.state or "PENDING").upper()
        was_terminated = any(entry.state == "CANCELING" for entry in found.state_history or [])
        return "CANCELED" if state == "FAILED" and was_terminated else state

    def schedule(self, pipeline: GraphComponent, name: str, when: str, arguments: dict[str, Any]) -> str:
        """Runs the pipeline's newest version on a schedule, and returns the schedule's id.

        Runs do not overlap, and missed times are not made up for. Replaces a schedule of the same name, of
        which an active run goes on.
        """
        when = cron.check_cron(when)
        require(pipeline, arguments)
        identity, _ = self.publish(pipeline)
        former = self.schedules(name)
        active = [one for one in former if one.status == "ENABLED"]
        for one in active:
            self.client.disable_recurring_run(one.recurring_run_id)
        try:
            made = self.create(identity, name, when, arguments)
        except Exception:
            for one in active:
                self.client.enable_recurring_run(one.recurring_run_id)
            raise
        for one in former:
            self.remove(one)
        return made.recurring_run_id

    def create(self, pipeline: str, name: str, when: str, arguments: dict[str, Any]) -> Any:
        """Creates a schedule that runs the newest version of the pipeline of this id."""
        return self.client._recurring_run_api.recurring_run_service_create_recurring_run(
            # kfp's own call requires a version, and the schedule would stay at it
            recurring_run=api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=self.experiment(),
                namespace=self.namespace,
                mode=api.RecurringRunMode.ENABLE,
                max_concurrency="1",
                no_catchup=True,
                trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=when)),
                pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=pipeline),
                runtime_config=api.V2beta1RuntimeConfig(parameters=arguments),
            )
        )

    def remove(self, schedule: Any) -> None:
        """Deletes a schedule and leaves its runs.

        A run is owned by its schedule: by the default, the only choice of kfp's own call, its pods and jobs would be
        deleted with the schedule.
        """
        self.client._recurring_run_api.recurring_run_service_delete_recurring_run(
            schedule.recurring_run_id, propagation_policy="ORPHAN"
        )

    def schedules(self, name: str = "") -> list[Any]:
        """Returns the schedules of this project's experiment and of its pipelines, or only those of one name."""
        experiments = self.client.list_experiments(namespace=self.namespace, filter=name_filter(EXPERIMENT)).experiments
        experiment_ids = {entry.experiment_id for entry in experiments or []}
        pipeline_ids = {self.pipeline_id(pipeline) for pipeline in self.pipelines}
        found, token = [], ""
        while True:
            page = self.client.list_recurring_runs(
                page_token=token,
                page_size=PAGE_SIZE,
                namespace=self.namespace,
                filter=name_filter(name) if name else None,
            )
            found += page.recurring_runs or []
            token = page.next_page_token
            if not token:
                return [
                    entry
                    for entry in found
                    if entry.experiment_id in experiment_ids or pipeline_of(entry) in pipeline_ids
                ]

    def schedules_named(self, name: str) -> list[Any]:
        """Returns the schedules of one name. Raises KubeflowError if there is none."""
        found = self.schedules(name)
        if not found:
            others = ", ".join(schedule.display_name for schedule in self.schedules()) or "none"
            raise KubeflowError(f"there is no schedule {name}; there are: {others}")
        return found

    def pause(self, name: str) -> None:
        for schedule in self.schedules_named(name):
            self.client.disable_recurring_run(schedule.recurring_run_id)

    def resume(self, name: str) -> None:
        for schedule in self.schedules_named(name):
            self.client.enable_recurring_run(schedule.recurring_run_id)

    def delete(self, name: str) -> None:
        for schedule in self.schedules_named(name):
            self.remove(schedule)

    @silenced()
    def experiment(self) -> str:
        return self.client.create_experiment(EXPERIMENT, namespace=self.namespace).experiment_id


def name_filter(name: str) -> str:
    """Returns a filter on the display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def pipeline_of(schedule: Any) -> str:
    """Returns the id of a schedule's pipeline; an empty text if it has a specification of its own."""
    reference = schedule.pipeline_version_reference
    return (reference.pipeline_id or "") if reference else ""


def is_named(entry: Any, version: str) -> bool:
    """Whether an uploaded version has this name, or was uploaded again as `version.1` and so on."""
    return re.fullmatch(rf"{re.escape(version)}(\.\d+)?", entry.display_name) is not None
