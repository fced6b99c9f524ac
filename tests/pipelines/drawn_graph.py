"""The graph of a compiled pipeline as the interface of Kubeflow Pipelines draws it."""

from dataclasses import dataclass, field
from typing import Any

Tree = dict[str, Any]
Node = str | tuple[str, str]
"""A task or group by its name, or an artifact by its task's name and its own."""


@dataclass
class Screen:
    """What is drawn at once: the tasks and groups of one group, and their output artifacts."""

    nodes: list[Node] = field(default_factory=list)
    edges: set[tuple[Node, Node]] = field(default_factory=set)


def drawn(spec: Tree) -> list[Screen]:
    """Returns the screens of a pipeline: the outermost group, then those that a click opens."""
    return screens_of(spec["root"]["dag"], spec["components"])


def screens_of(dag: Tree, components: Tree) -> list[Screen]:
    """Returns the screen of a group, and those of the groups in it."""
    screen, inner = Screen(), []
    names = {key: task["taskInfo"]["name"] for key, task in dag["tasks"].items()}
    for key, task in dag["tasks"].items():
        component, name = components[task["componentRef"]["name"]], names[key]
        screen.nodes.append(name)
        for output in component.get("outputDefinitions", {}).get("artifacts", {}):
            screen.nodes.append((name, output))
            screen.edges.add((name, (name, output)))
        for given in task.get("inputs", {}).get("artifacts", {}).values():
            source = given.get("taskOutputArtifact")
            if source:
                screen.edges.add(((names[source["producerTask"]], source["outputArtifactKey"]), name))
        for given in task.get("inputs", {}).get("parameters", {}).values():
            source = given.get("taskOutputParameter")
            if source:
                screen.edges.add((names[source["producerTask"]], name))
        screen.edges |= {(names[earlier], name) for earlier in task.get("dependentTasks", [])}
        if "dag" in component:
            inner += screens_of(component["dag"], components)
    return [screen, *inner]
