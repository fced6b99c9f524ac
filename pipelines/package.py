"""A compiled pipeline as Kubeflow Pipelines takes it."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import yaml
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from blip.launch.kubeflow import KubeflowError
from components.revision import revision
from pipelines import lint


@contextlib.contextmanager
def package(pipeline: GraphComponent) -> Iterator[tuple[Path, str]]:
    """Yields the compiled pipeline's path and version: the code's revision and the digest of the compiled pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        text = path.read_text(encoding="utf-8")
        if faults := lint.faults(text):
            raise KubeflowError("\n".join(faults))
        content = json.dumps(list(yaml.safe_load_all(text)), sort_keys=True)
        yield path, f"{revision()}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def without_cache(text: str, names: Collection[str]) -> str:
    """Returns a compiled pipeline without caching for the named steps, including nested ones, unlike kfp's switch."""
    spec, *platform = yaml.safe_load_all(text)
    groups = [spec["root"], *spec["components"].values()]
    for group in groups:
        for task in group.get("dag", {}).get("tasks", {}).values():
            if task["taskInfo"]["name"] in names:
                task["cachingOptions"] = {}
    return yaml.safe_dump_all([spec, *platform], sort_keys=False)
