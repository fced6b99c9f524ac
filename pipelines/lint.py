"""Traps of Kubeflow Pipelines: what compiles without a word, and on a cluster fails or, worse, does not."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

Tree = dict[str, Any]
Faults = Iterator[str]

PARAMETER = r"\{\{\$\.inputs\.parameters\['pipelinechannel--([\w-]+)'\]\}\}"
MOST_ITEMS = 256
LARGEST = 1_000_000
"""Bytes of YAML that still fit into one object of the cluster, with what the server adds to them."""
LARGEST_SOURCE = 100_000
"""Bytes of a component's source: it travels as one command-line argument, of which the kernel takes 128 KiB."""
SHORTEST_RETRY_WINDOW = 24 * 3600
"""Seconds. The controller counts the window from the first attempt's start, and a step of training takes days."""
VALUES = {"STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST"}
"""What a step may take; in a mapping integers become floats on one machine and stay integers on a cluster."""


def faults(text: str) -> list[str]:
    """What is wrong with a compiled pipeline, a line each; nothing is wrong with an empty list."""
    spec, *rest = yaml.safe_load_all(text)
    executors = spec["deploymentSpec"]["executors"]
    placed = rest[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if rest else {}
    found = []
    if len(text) > LARGEST:
        found.append(f"the pipeline is {len(text):,} bytes long, {LARGEST:,} is the most: fewer tasks, shorter steps")
    for name, executor in executors.items():
        if "container" in executor:
            found += [f"{name}: {fault}" for fault in in_container(executor["container"], parameters(spec["root"]))]
            found += [
                f"{name}: {fault}"
                for fault in in_placement(executor["container"], placed.get(name, {}), parameters(spec["root"]))
            ]
    for name, component in spec["components"].items():
        if "executorLabel" in component:
            found += [f"{name}: {fault}" for fault in in_step(component)]
    found += [f"pipeline: {fault}" for fault in in_parameters(parameters(spec["root"]))]
    for name, component in {"root": spec["root"], **spec["components"]}.items():
        for task_name, task in component.get("dag", {}).get("tasks", {}).items():
            for fault in (*in_task(task, component, spec), *in_caching(task_name, task, component["dag"])):
                found.append(f"{name}.{task_name}: {fault}")
    return found


def parameters(component: Tree) -> Tree:
    return component.get("inputDefinitions", {}).get("parameters", {})


def in_container(container: Tree, known: Tree) -> Faults:
    """Image, command, environment and resources of a step."""
    image = container["image"]
    if "{{" in image and not re.fullmatch(PARAMETER, image):
        yield f"image {image} mixes text and a parameter, and the driver would use the parameter alone: pass the whole name"
    whole = re.fullmatch(PARAMETER, image)
    tagged = known.get(whole[1], {}).get("defaultValue", "") if whole else image
    if tagged and (":" not in tagged.rpartition("/")[2] or tagged.endswith(":latest")):
        yield f"image {tagged} needs a tag that stays, such as the revision"
    command = container.get("command", [])
    if not any("kfp.dsl.executor_main" in part for part in command):
        yield "is a container component, which one machine cannot run: make it a lightweight one"
    if any("pip install" in part for part in command):
        yield "installs packages when it starts: they belong into the image (install_kfp_package=False, no packages_to_install)"
    if any(len(part) > LARGEST_SOURCE for part in command):
        yield f"its source is longer than {LARGEST_SOURCE:,} bytes: it belongs into the library"
    for variable in container.get("env", []):
        if "{{" in variable.get("value", ""):
            yield f"variable {variable['name']} holds a parameter, which would arrive as its placeholder: make it an input"
        if re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", variable["name"]):
            yield f"variable {variable['name']} would put a secret into the file: use kubernetes.use_secret_as_env"
    for parameter in re.findall(PARAMETER, json.dumps(container.get("resources", {}))):
        kind = known.get(parameter, {}).get("parameterType", "STRING")
        if kind != "STRING":
            yield f"resource parameter {parameter} must be a str, is {kind}: the driver would drop the GPU without a word"
        if parameter != "gpu_type" and known.get(parameter, {}).get("defaultValue") == "":
            yield f"resource parameter {parameter} must not be empty"


def in_placement(container: Tree, placed: Tree, known: Tree) -> Faults:
    """User of a step; node selector, tolerations and shared memory of one that asks for GPUs."""
    user = placed.get("securityContext", {})
    if not user.get("runAsNonRoot") or int(user.get("runAsUser", 0)) == 0:
        yield "names no user other than root, so that the namespace refuses its pod: kubernetes.set_security_context"
    selector = placed.get("nodeSelector", {})
    default = known.get(selector.get("nodeSelectorJson", {}).get("componentInputParameter"), {}).get("defaultValue", {})
    for label, value in {**selector.get("labels", {}), **default}.items():
        if not isinstance(value, str):
            yield f"node selector {label} must be a string, is {value!r}: the driver refuses it"
    if "accelerator" not in container.get("resources", {}):
        return
    if not selector:
        yield "asks for GPUs but names no node pool: kubernetes.add_node_selector_json"
    if "tolerations" not in placed:
        yield "asks for GPUs but tolerates no taint of their nodes: kubernetes.add_toleration_json"
    if not any(mount["mountPath"] == "/dev/shm" for mount in placed.get("emptyDirMounts", [])):
        yield "asks for GPUs but has the 64 MiB of shared memory that pods get: kubernetes.empty_dir_mount at /dev/shm"


def in_step(component: Tree) -> Faults:
    """What a step takes."""
    taken = parameters(component)
    for name, parameter in taken.items():
        if parameter["parameterType"] not in VALUES:
            yield f"input {name} is {parameter['parameterType']}, in which integers become floats: pass a str or a list of key=value"


def in_parameters(known: Tree) -> Faults:
    """The pipeline's own parameters."""
    for name, parameter in known.items():
        if parameter.get("isOptional") and "defaultValue" not in parameter:
            yield f"parameter {name} is None by default, which no step can take: use '', [] or {{}}"


def in_task(task: Tree, around: Tree, spec: Tree) -> Faults:
    """A task's inputs, retries and control flow."""
    item = (task.get("parameterIterator") or task.get("artifactIterator") or {}).get("itemInput")
    declared = {name for kind in around.get("inputDefinitions", {}).values() for name in kind} | {item}
    for kind in task.get("inputs", {}).values():
        for name, given in kind.items():
            wanted = given.get("componentInputParameter") or given.get("componentInputArtifact")
            if wanted and wanted not in declared:
                yield f"{name} comes from {wanted}, which is no input of the group around it: task.register_pipeline_channels"
            text = given.get("runtimeValue", {}).get("constant", "")
            if (
                isinstance(text, str)
                and re.search(PARAMETER, text)
                and not re.fullmatch(PARAMETER, text)
                and name != "base_image"
            ):
                yield f"{name} is put together in the pipeline, which goes wrong in loops and nested pipelines: pass the parts"
    component = spec["components"][task["componentRef"]["name"]]
    if "executorLabel" in component and is_cached(task) and "settings" not in parameters(component):
        yield (
            "is cached and takes no `settings` of the plan: no cache sees a change of the library, of a configuration, or of files "
            "that it names"
        )
    if "executorLabel" in component:
        yield from in_retries(task.get("retryPolicy", {}))
    if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
        yield "is an exit handler, which fails around loops and rules out outputs: let the steps themselves clean up"
    if item:
        yield from in_loop(task, component, spec)


def in_retries(policy: Tree) -> Faults:
    """How often and how long a step is tried again."""
    if not policy.get("maxRetryCount"):
        yield "is not retried when its node gets lost: set_retry"
        return
    window = policy.get("backoffMaxDuration", "0s")
    if float(window.removesuffix("s")) < SHORTEST_RETRY_WINDOW:
        yield (
            f"is tried again only within {window} of its first start, and later attempts are ended then: "
            f"set_retry(..., backoff_max_duration) of at least {SHORTEST_RETRY_WINDOW}s"
        )


def is_cached(task: Tree) -> bool:
    return "cachingOptions" not in task or bool(task["cachingOptions"].get("enableCache"))


def in_caching(name: str, task: Tree, dag: Tree) -> Faults:
    """A task without cache: caches compare parameters by value, but artifacts by where they lie, which is elsewhere each time."""
    if is_cached(task):
        return
    taken = [
        given for other in dag["tasks"].values() for given in other.get("inputs", {}).get("artifacts", {}).values()
    ]
    taken += [
        one for output in dag.get("outputs", {}).get("artifacts", {}).values() for one in output["artifactSelectors"]
    ]
    if name in (
        given.get("taskOutputArtifact", given).get(key)
        for given in taken
        for key in ("producerTask", "producerSubtask")
    ):
        yield "is not cached, so that all that takes its artifacts runs again each time"


def in_loop(task: Tree, component: Tree, spec: Tree) -> Faults:
    """A loop's items and what lies in it."""
    raw = task.get("parameterIterator", {}).get("items", {}).get("raw")
    if raw is not None and not 1 <= len(json.loads(raw)) <= MOST_ITEMS:
        yield f"loops over {len(json.loads(raw))} items: at least 1, at most {MOST_ITEMS}"
    for name, inner in within(component, spec):
        if "parameterIterator" in inner or "artifactIterator" in inner:
            yield f"holds another loop, {name}: make it one flat loop"


def within(component: Tree, spec: Tree) -> Iterator[tuple[str, Tree]]:
    """All tasks of a group, those of its groups too."""
    for name, task in component.get("dag", {}).get("tasks", {}).items():
        yield name, task
        yield from within(spec["components"][task["componentRef"]["name"]], spec)
