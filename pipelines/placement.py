"""Where steps run on a cluster: GPUs, memory, pools, secrets, retries. One machine ignores all of it."""

import os
from typing import Any

from kfp import dsl, kubernetes

from blip.launch import job

POOL = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
"""Labels of the nodes that train; the default is what NVIDIA's device plugin writes on an A100. Values must be strings."""
TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
"""Taints that GPU steps put up with; a spot pool needs its own taint here and its own label in the pool."""
SECRET = CONFIG_MAP = "blip"
"""What holds keys and settings; both are optional: with workload identity there is no such secret."""
SECRETS = {key: variable for variable, key in job.SECRETS.items()}
CONFIG = {key: variable for variable, key in job.SETTINGS.items()}
"""The variables of a step, by the keys that hold them: those of the jobs that it starts."""
SHARED_MEMORY = os.environ.get("BLIP_SHARED_MEMORY", "32Gi")
"""Size of /dev/shm, through which loader workers and NCCL pass data; it counts against the memory limit and is fixed when compiling."""

RETRIES, FIRST_PAUSE, PAUSE_FACTOR = 3, "60s", 2.0
RETRY_WINDOW = "2592000s"
"""How long after its first attempt began a step may be tried again: 30 days. The controller also ends a later attempt at that moment."""
USER = 10001
"""User and group of the image. The restricted pod security standard wants a pod to name a user other than root."""


def on_cluster(task: dsl.PipelineTask, image: Any, name: str) -> dsl.PipelineTask:
    """What every step has: its name here and in MLflow, the image, its user, credentials, and retries for nodes that get lost."""
    task.set_display_name(name).set_container_image(image)
    task.set_retry(RETRIES, FIRST_PAUSE, PAUSE_FACTOR, RETRY_WINDOW)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_secret_as_env(task, SECRET, SECRETS, optional=True)
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, CONFIG, optional=True)
    # the records of one run lie together in MLflow
    kubernetes.use_field_path_as_env(task, "BLIP_GROUP", "metadata.labels['pipeline/runid']")
    return task.set_env_variable("MLFLOW_RUN_NAME", name)


def not_cached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that looks at the world outside: what there is now is not what there was, so no cache can answer for it."""
    return task.set_caching_options(False)


def on_cpu(task: dsl.PipelineTask, image: Any, name: str) -> dsl.PipelineTask:
    """A step that reads, writes and decides."""
    return (
        on_cluster(task, image, name)
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
    """A step that trains or predicts, on a node of the pool."""
    on_cluster(task, image, name)
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpus).set_cpu_limit(cpu).set_memory_limit(memory)
    # kfp 2.17 forgets these inside loops and conditions
    task.register_pipeline_channels([gpus, gpu_type, cpu, memory])
    kubernetes.add_node_selector_json(task, pool)
    kubernetes.add_toleration_json(task, tolerations)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    return task
