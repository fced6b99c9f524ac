"""Checks of compiled pipelines: faults that kfp compiles silently and that fail, or worse, do not fail on a cluster."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

Tree = dict[str, Any]
Faults = Iterator[str]

PARAMETER_REFERENCE = r"\{\{\$\.inputs\.parameters\['pipelinechannel--([\w-]+)'\]\}\}"
MAX_LOOP_ITEMS = 256
MAX_PIPELINE_BYTES = 1_000_000
"""Bytes of YAML that fit into one object of the cluster together with the server's additions."""
MAX_SOURCE_BYTES = 100_000
"""Bytes of a component's source, which is one command-line argument; the kernel's limit is 128 KiB."""
MIN_RETRY_WINDOW = 24 * 3600
"""Seconds. The controller measures the window from the start of the first attempt, and a training takes days."""
STEP_INPUT_TYPES = {"STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST"}
"""Types of a step's inputs. Integers in a mapping become floats on one machine, but stay integers on a cluster."""


def faults(text: str) -> list[str]:
    """Returns the faults of a compiled pipeline, a line each."""
    spec, *rest = yaml.safe_load_all(text)
    executors = spec["deploymentSpec"]["executors"]
    placements = rest[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if rest else {}
    known = parameters_of(spec["root"])
    found = []
    if len(text) > MAX_PIPELINE_BYTES:
        size = f"{len(text):,} bytes long, {MAX_PIPELINE_BYTES:,} is the most"
        found.append(f"the pipeline is {size}: fewer tasks, shorter steps")
    for name, executor in executors.items():
        if "container" in executor:
            container = executor["container"]
            found += [f"{name}: {fault}" for fault in container_faults(container, known)]
            found += [f"{name}: {fault}" for fault in placement_faults(container, placements.get(name, {}), known)]
    for name, component in spec["components"].items():
        if "executorLabel" in component:
            found += [f"{name}: {fault}" for fault in input_faults(component)]
    found += [f"pipeline: {fault}" for fault in parameter_faults(known)]
    for name, component in {"root": spec["root"], **spec["components"]}.items():
        for task_name, task in component.get("dag", {}).get("tasks", {}).items():
            found += [f"{name}.{task_name}: {fault}" for fault in task_faults(task, component, spec)]
            found += [f"{name}.{task_name}: {fault}" for fault in caching_faults(task_name, task, component["dag"])]
    return found


def parameters_of(component: Tree) -> Tree:
    return component.get("inputDefinitions", {}).get("parameters", {})


def container_faults(container: Tree, known: Tree) -> Faults:
    """Yields faults of a step's image, command, environment and resources."""
    image = container["image"]
    whole = re.fullmatch(PARAMETER_REFERENCE, image)
    if "{{" in image and not whole:
        rule = "mixes text and a parameter, and the driver would use the parameter alone"
        yield f"image {image} {rule}: pass the whole name"
    tagged = known.get(whole[1], {}).get("defaultValue", "") if whole else image
    if tagged and (":" not in tagged.rpartition("/")[2] or tagged.endswith(":latest")):
        yield f"image {tagged} needs a tag that stays, such as the revision"
    command = container.get("command", [])
    if not any("kfp.dsl.executor_main" in part for part in command):
        yield "is a container component, which one machine cannot run: make it a lightweight one"
    if any("pip install" in part for part in command):
        way_out = "install_kfp_package=False, no packages_to_install"
        yield f"installs packages when it starts: they belong in the image ({way_out})"
    if any(len(part) > MAX_SOURCE_BYTES for part in command):
        yield f"its source is longer than {MAX_SOURCE_BYTES:,} bytes: it belongs in the library"
    for variable in container.get("env", []):
        if "{{" in variable.get("value", ""):
            name = variable["name"]
            yield f"variable {name} holds a parameter, which would arrive as its placeholder: make it an input"
        if re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", variable["name"]):
            yield f"variable {variable['name']} would put a secret into the file: use kubernetes.use_secret_as_env"
    for parameter in re.findall(PARAMETER_REFERENCE, json.dumps(container.get("resources", {}))):
        kind = known.get(parameter, {}).get("parameterType", "STRING")
        if kind != "STRING":
            yield f"resource parameter {parameter} must be a str, is {kind}: the driver would silently drop the GPU"
        if parameter != "gpu_type" and known.get(parameter, {}).get("defaultValue") == "":
            yield f"resource parameter {parameter} must not be empty"


def placement_faults(container: Tree, placed: Tree, known: Tree) -> Faults:
    """Yields faults of a step's user and node selector, and of tolerations and shared memory of GPU steps."""
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
    if not any(mount["mountPath"] == "/scratch" for mount in placed.get("emptyDirMounts", [])):
        yield "asks for GPUs but would fill its root file system: kubernetes.empty_dir_mount at /scratch"


def input_faults(component: Tree) -> Faults:
    """Yields faults of a step's inputs."""
    taken = parameters_of(component)
    for name, parameter in taken.items():
        if parameter["parameterType"] not in STEP_INPUT_TYPES:
            kind = parameter["parameterType"]
            yield f"input {name} is {kind}, in which integers become floats: pass a str or a list of key=value"


def parameter_faults(known: Tree) -> Faults:
    """Yields faults of the pipeline's parameters."""
    for name, parameter in known.items():
        if parameter.get("isOptional") and "defaultValue" not in parameter:
            yield f"parameter {name} is None by default, which no step can take: use '', [] or {{}}"


def task_faults(task: Tree, around: Tree, spec: Tree) -> Faults:
    """Yields faults of a task's inputs, caching, retries and control flow."""
    item = (task.get("parameterIterator") or task.get("artifactIterator") or {}).get("itemInput")
    declared = {name for kind in around.get("inputDefinitions", {}).values() for name in kind} | {item}
    for kind in task.get("inputs", {}).values():
        for name, given in kind.items():
            wanted = given.get("componentInputParameter") or given.get("componentInputArtifact")
            if wanted and wanted not in declared:
                rule = f"comes from {wanted}, which is no input of the group around it"
                yield f"{name} {rule}: task.register_pipeline_channels"
            text = given.get("runtimeValue", {}).get("constant", "")
            if name != "base_image" and is_mixed(text):
                rule = "is put together in the pipeline, which goes wrong in loops and nested pipelines"
                yield f"{name} {rule}: pass the parts"
    component = spec["components"][task["componentRef"]["name"]]
    if "executorLabel" in component and is_cached(task) and "settings" not in parameters_of(component):
        yield (
            "is cached and takes no `settings` of the plan: "
            "no cache sees a change of the library, of a configuration, or of files that it names"
        )
    if "executorLabel" in component:
        yield from retry_faults(task.get("retryPolicy", {}))
    if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
        yield "is an exit handler, which fails around loops and rules out outputs: let the steps themselves clean up"
    if item:
        yield from loop_faults(task, component, spec)


def is_mixed(text: Any) -> bool:
    """Whether a value is a text that holds a parameter among other characters."""
    if not isinstance(text, str) or re.fullmatch(PARAMETER_REFERENCE, text):
        return False
    return bool(re.search(PARAMETER_REFERENCE, text))


def retry_faults(policy: Tree) -> Faults:
    """Yields faults of a step's retries."""
    if not policy.get("maxRetryCount"):
        yield "is not retried when its node gets lost: set_retry"
        return
    window = policy.get("backoffMaxDuration", "0s")
    if float(window.removesuffix("s")) < MIN_RETRY_WINDOW:
        yield (
            f"is tried again only within {window} of its first start, and later attempts are ended then: "
            f"set_retry(..., backoff_max_duration) of at least {MIN_RETRY_WINDOW}s"
        )


def is_cached(task: Tree) -> bool:
    return "cachingOptions" not in task or bool(task["cachingOptions"].get("enableCache"))


def caching_faults(name: str, task: Tree, dag: Tree) -> Faults:
    """Yields a fault for an uncached task whose artifacts other tasks take.

    Caches compare parameters by value but artifacts by path, which differs each time.
    """
    if is_cached(task):
        return
    taken = []
    for other in dag["tasks"].values():
        taken += other.get("inputs", {}).get("artifacts", {}).values()
    for output in dag.get("outputs", {}).get("artifacts", {}).values():
        taken += output["artifactSelectors"]
    producers = set()
    for artifact in taken:
        source = artifact.get("taskOutputArtifact", artifact)
        producers |= {source.get("producerTask"), source.get("producerSubtask")}
    if name in producers:
        yield "is not cached, so that all that takes its artifacts runs again each time"


def loop_faults(task: Tree, component: Tree, spec: Tree) -> Faults:
    """Yields faults of a loop's items and body."""
    raw = task.get("parameterIterator", {}).get("items", {}).get("raw")
    if raw is not None and not 1 <= len(json.loads(raw)) <= MAX_LOOP_ITEMS:
        yield f"loops over {len(json.loads(raw))} items: at least 1, at most {MAX_LOOP_ITEMS}"
    for name, inner in within(component, spec):
        if "parameterIterator" in inner or "artifactIterator" in inner:
            yield f"holds another loop, {name}: make it one flat loop"


def within(component: Tree, spec: Tree) -> Iterator[tuple[str, Tree]]:
    """Yields the tasks of a group and of its subgroups."""
    for name, task in component.get("dag", {}).get("tasks", {}).items():
        yield name, task
        yield from within(spec["components"][task["componentRef"]["name"]], spec)
