"""Placement of steps on a cluster: GPUs, memory, node pools, secrets, retries. A local run ignores all of it."""

import os
from typing import Any

from kfp import dsl, kubernetes

from blip.launch import job

POOL = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
"""Labels of the GPU nodes, with string values; the default is the label of NVIDIA's device plugin for an A100."""
TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
"""Taints that GPU steps tolerate; a spot pool needs its taint here and its label in the pool."""
SECRET = CONFIG_MAP = "blip"
"""Names of the objects with credentials and settings; both are optional, as with workload identity."""
SECRET_VARIABLES = {key: variable for variable, key in job.SECRETS.items()}
CONFIG_VARIABLES = {key: variable for variable, key in job.STEP_SETTINGS.items()}
"""The environment variables of a step by the key that holds the value, as for the jobs that it starts."""
SHARED_MEMORY = os.environ.get("BLIP_SHARED_MEMORY", "32Gi")
"""Size of /dev/shm for loader workers and NCCL; it counts against the memory limit and is fixed at compile time."""
SCRATCH = "200Gi"
"""Size of a GPU step's /scratch, which holds copies of shards and weights, and a checkpoint that is being saved."""
STEP_RETRIES, STEP_RETRY_PAUSE, RETRY_PAUSE_FACTOR = 3, "60s", 2.0
RETRY_WINDOW = "2592000s"
"""30 days: the time from the start of the first attempt at which the controller stops retries and running attempts."""
USER = 10001
"""User and group of the image; the restricted pod security standard requires a user other than root."""


def place_step(task: dsl.PipelineTask, image: Any, name: str) -> dsl.PipelineTask:
    """Sets the name, in MLflow alike, the image and its user, the credentials, and retries for lost nodes."""
    task.set_display_name(name).set_container_image(image)
    task.set_retry(STEP_RETRIES, STEP_RETRY_PAUSE, RETRY_PAUSE_FACTOR, RETRY_WINDOW)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_secret_as_env(task, SECRET, SECRET_VARIABLES, optional=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, CONFIG_VARIABLES, optional=True)
    # groups the steps of one pipeline run in MLflow
    kubernetes.use_field_path_as_env(task, "BLIP_GROUP", "metadata.labels['pipeline/runid']")
    return task.set_env_variable("MLFLOW_RUN_NAME", name)


def not_cached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Turns off caching for a step that reads state outside the pipeline."""
    return task.set_caching_options(False)


def on_cpu(task: dsl.PipelineTask, image: Any, name: str) -> dsl.PipelineTask:
    """Places a step without GPUs."""
    return (
        place_step(task, image, name)
        .set_cpu_request("1")
        .set_cpu_limit("4")
        .set_memory_request("4Gi")
        .set_memory_limit("8Gi")
    )


def on_gpu(
    task: dsl.PipelineTask,
    image: Any,
    name: str,
    gpus: Any,
    gpu_type: Any,
    cpu: Any,
    memory: Any,
    pool: Any,
    tolerations: Any,
) -> dsl.PipelineTask:
    """Places a step that trains or predicts on a GPU node of the pool."""
    place_step(task, image, name)
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpus).set_cpu_limit(cpu).set_memory_limit(memory)
    # kfp 2.17 does not pass these into loops and conditions
    task.register_pipeline_channels([gpus, gpu_type, cpu, memory])
    kubernetes.add_node_selector_json(task, pool)
    kubernetes.add_toleration_json(task, tolerations)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    kubernetes.empty_dir_mount(task, "scratch", "/scratch", size_limit=SCRATCH)
    return task
