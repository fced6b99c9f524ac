"""A step at work: its settings and resources, its inputs and its output in the store, and its page."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from kfp.dsl import Artifact

from blip.launch.resources import Resources
from blip.results import Result, TrainResult
from blip.runs.context import RunContext
from blip.runs.outputs import StepOutput
from blip.runs.stages import overrides_for
from blip.storage import scratch, write_file
from components.revision import revision

NAME = "MLFLOW_RUN_NAME"
"""Environment variable with a step's name, which tells two trainings of one stage apart."""

R = TypeVar("R", bound=Result)


class Step:
    """A step of a pipeline.

    Inputs and the output are URIs in the store: the interface of Kubeflow Pipelines draws a node for each artifact, so
    that a step has one alone, its page.
    """

    def __init__(self, stage: str, preset: str, settings: Sequence[str], store: str, out: Path, files: ExitStack):
        self.stage, self.store, self.out, self.files = stage, store, out, files
        self.resources = Resources.load(store)
        self.run = RunContext(
            preset=preset,
            overrides=tuple(overrides_for(stage, settings, self.resources.max_gpu_hours)),
            store=store,
            revision=revision(),
        )
        self.name = os.environ.get(NAME) or stage
        self.inputs: dict[str, str] = {}

    def input(self, role: str, uri: str) -> Path:
        """Returns the local folder of another step's output, which the record of this step's output names."""
        self.inputs[role] = uri
        return self.files.enter_context(StepOutput.load(uri).folder())

    def finish(self, result: R, html: Callable[[R], str], page: Artifact, *, same: bool = False) -> str:
        """Publishes the folder `out`, writes the page, and returns the URI of the output.

        `seconds` of the result becomes the time of the whole step. With `same` it becomes 0, so that an equal result
        has the URI of the earlier one, and what was made from that comes from the cache.
        """
        result = result.model_copy(update={"seconds": 0.0 if same else process_seconds()})
        write_page(html(result), page)
        if isinstance(result, TrainResult) and result.alarms:
            page.metadata["alarms"] = [str(alarm) for alarm in result.alarms]
        return StepOutput.publish(self.store, self.stage, self.out, result, self.inputs).uri


@contextmanager
def at_work(stage: str, preset: str, settings: Sequence[str], store: str, item: str = "") -> Iterator[Step]:
    """Yields a step with a temporary folder for what it makes.

    A loop's `item` is put before the step's name, in MLflow alike, which tells `vqa fine-tune` and `nlvr fine-tune`
    apart.
    """
    with scratch(stage) as folder, ExitStack() as files, named(item, stage):
        out = folder / "out"
        out.mkdir()
        yield Step(stage, preset, settings, store, out, files)


@contextmanager
def named(item: str, stage: str) -> Iterator[None]:
    """Puts a loop's item before the step's name within the context."""
    before = os.environ.get(NAME)
    if item:
        os.environ[NAME] = f"{item} {before or stage}"
    try:
        yield
    finally:
        if item:
            os.environ.pop(NAME)
            os.environ.update({NAME: before} if before else {})


def write_page(html: str, page: Artifact) -> None:
    """Writes a step's page under the step's name, which is also the name that the interface shows."""
    name = os.environ.get(NAME) or page.name or "page"
    page.uri = f"{page.uri}/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.html"
    page.metadata["display_name"] = name
    write_file(page.path, html)


def process_seconds() -> float:
    """Returns the seconds since this process started, which include the imports."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
