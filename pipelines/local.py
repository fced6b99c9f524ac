"""Runs a pipeline on one machine: one step at a time, in the order of its docstring, resumed from the cache."""

import contextlib
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.graph_component import GraphComponent
from kfp.local import pipeline_orchestrator
from rich.console import Console

from pipelines.parameters import ParameterError, PipelineStep, steps
from pipelines.placement import IMAGE_VARIABLE
from pipelines.run_lock import exclusive_run
from pipelines.step_outputs import Outputs
from pipelines.step_runner import StepRunner, mlflow_file

LOCAL_IMAGE = "python-of-this-machine"
"""The image of every step: steps run without one here, but the cache compares it."""


def run_locally(
    pipeline: GraphComponent, arguments: dict[str, Any], root: Path, console: Console, again: Collection[str] = ()
) -> dict[str, Outputs]:
    """Runs the steps that are not in the cache under `root`, and returns the outputs of each step, in order.

    Those of the second round of a loop are named as `fine-tune 2`. A step that a condition excludes has no outputs.
    Steps named in `again` run in any case, and with them all steps that take their outputs. Raises StepError for the
    first step that fails, from which the next run resumes, RootError, and ParameterError if MLflow's file cannot lie in
    `root`.
    """
    check_root(root)
    numbered = steps(pipeline)
    spec = in_order(pipeline.pipeline_spec, numbered)
    warnings.filterwarnings("ignore", module="kfp")
    with exclusive_run(root, console) as lock, tempfile.TemporaryDirectory(prefix="blip-") as scratch:
        local.init(
            local.SubprocessRunner(use_venv=False), str(root), os.path.join(scratch, "workspace"), enable_caching=True
        )
        runner = StepRunner(numbered, console, root, scratch, lock, again)
        # kfp prints executor inputs and much else to standard output
        with runner.installed(), quiet_kfp(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                pipeline_orchestrator.run_local_pipeline(spec, arguments)
            except RuntimeError:
                if runner.failure:  # of a step in a loop, whose name kfp says instead
                    raise runner.failure from None
                raise
    return runner.outputs


@contextlib.contextmanager
def quiet_kfp() -> Iterator[None]:
    """Keeps kfp.local's own log, which says again what failed in a loop, from the terminal within the context."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def check_root(root: Path) -> None:
    """Raises ParameterError if MLflow cannot use a file in this folder, unless another place is set for its records."""
    from blip.tracking.server import SettingError, check_file_address

    try:
        check_file_address(os.environ.get("MLFLOW_TRACKING_URI") or mlflow_file(root))
    except SettingError as error:
        raise ParameterError(f"--root {root}: {error}") from None


def in_order(pipeline_spec: Any, numbered: list[PipelineStep]) -> Any:
    """Returns the pipeline for one machine: its steps in the order of the docstring, without retries.

    By itself kfp.local runs steps in any order that the edges allow, names the folders train, train-2 and so on, and
    pauses between attempts that are meant for lost nodes.
    """
    spec = copy.deepcopy(pipeline_spec)
    for executor in spec.deployment_spec["executors"].values():
        container = executor["container"]
        container["image"] = LOCAL_IMAGE
        if "env" in container:
            container["env"] = [entry for entry in container["env"] if entry["name"] != IMAGE_VARIABLE]
    numbers = {step.name: step.number for step in numbered}
    found = []

    def arrange(dag: Any) -> int:
        """Chains the tasks of a group and of its subgroups, and returns the number of its first step."""
        first = {}
        for key, task in dag.tasks.items():
            task.ClearField("retry_policy")
            component = pipeline_spec.components[task.component_ref.name]
            if component.HasField("dag"):
                first[key] = arrange(spec.components[task.component_ref.name].dag)
                continue
            name = task.task_info.name
            found.append(name)
            first[key] = numbers.get(name, 0)
            spec.components[f"comp-{name}"].CopyFrom(component)
            task.component_ref.name = f"comp-{name}"
        for earlier, key in pairwise(sorted(first, key=lambda key: first[key])):
            dependencies = dag.tasks[key].dependent_tasks
            if earlier not in dependencies:
                dependencies.append(earlier)
        return min(first.values())

    arrange(spec.root.dag)
    assert sorted(found) == sorted(numbers), f"the description must number the steps {sorted(found)}"
    return spec
