"""Placement of steps on a cluster: GPUs, memory, node pools, secrets, retries. A local run ignores all of it."""

import os
from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from blip.launch import job
from components.image import image

SECRET = CONFIG_MAP = "blip"
"""Names of the objects with credentials and settings; both are optional, as with workload identity."""
SECRET_VARIABLES = {key: variable for variable, key in job.SECRETS.items()}
CONFIG_VARIABLES = {key: variable for variable, key in job.STEP_SETTINGS.items()}
"""The environment variables of a step by the key that holds the value, as for the jobs that it starts."""
IMAGE_VARIABLE = "BLIP_IMAGE"
"""The variable with the image of a step, in which its jobs run, too."""
SHARED_MEMORY = os.environ.get("BLIP_SHARED_MEMORY", "32Gi")
"""Size of /dev/shm for loader workers and NCCL; it counts against the memory limit and is fixed at compile time."""
SCRATCH = "200Gi"
"""Size of a GPU step's /scratch, which holds copies of shards and weights, and a checkpoint that is being saved."""
STEP_RETRIES, STEP_RETRY_PAUSE, RETRY_PAUSE_FACTOR = 3, "60s", 2.0
RETRY_WINDOW = "2592000s"
"""30 days: the time from the start of the first attempt at which the controller stops retries and running attempts."""
USER = 10001
"""User and group of the image; the restricted pod security standard requires a user other than root."""


def place_step(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Sets the name, in MLflow alike, the user, the credentials, and retries for lost nodes.

    The image is that of the component, so that a version of a pipeline has one; the step's jobs run in it, too.
    """
    task.set_display_name(name)
    task.set_retry(STEP_RETRIES, STEP_RETRY_PAUSE, RETRY_PAUSE_FACTOR, RETRY_WINDOW)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_secret_as_env(task, SECRET, SECRET_VARIABLES, optional=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, CONFIG_VARIABLES, optional=True)
    # groups the steps of one pipeline run in MLflow and in the store
    kubernetes.use_field_path_as_env(task, "BLIP_GROUP", "metadata.labels['pipeline/runid']")
    return task.set_env_variable("MLFLOW_RUN_NAME", name).set_env_variable(IMAGE_VARIABLE, image())


def not_cached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Turns off caching for a step that reads state outside the pipeline."""
    return task.set_caching_options(False)


def on_cpu(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Places a step that neither trains nor predicts."""
    place_step(task, name).set_cpu_request("1").set_cpu_limit("4")
    return task.set_memory_request("4Gi").set_memory_limit("8Gi")


def on_placement(task: dsl.PipelineTask, name: str, requests: Mapping[str, Any]) -> dsl.PipelineTask:
    """Places a step that trains or predicts; `requests` are outputs of the plan: `gpus`, `gpu_type`, `cpu`, `memory`,
    `pool` (labels of the nodes) and `tolerations`.

    The driver of Kubeflow Pipelines resolves these when the step starts. The sizes of volumes it takes from the
    compiled pipeline alone.
    """
    place_step(task, name)
    task.set_accelerator_type(requests["gpu_type"]).set_accelerator_limit(requests["gpus"])
    task.set_cpu_limit(requests["cpu"]).set_memory_limit(requests["memory"])
    kubernetes.add_node_selector_json(task, requests["pool"])
    kubernetes.add_toleration_json(task, requests["tolerations"])
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    kubernetes.empty_dir_mount(task, "scratch", "/scratch", size_limit=SCRATCH)
    return task
