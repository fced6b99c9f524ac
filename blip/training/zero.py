"""All that knows DeepSpeed: how it is started, and how its partitioned state becomes whole tensors by name."""

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

os.environ.setdefault(
    "DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu"
)  # read when DeepSpeed is imported

import deepspeed
import deepspeed.ops
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)

from blip.distributed import rank, world
from blip.tasks.task import Task

MOMENTS = "exp_avg", "exp_avg_sq"


def wrap(
    task: Task, optimizer: torch.optim.Optimizer, stage: int, accumulation: int, grad_clip: float | None, bf16: bool
) -> Any:
    """A DeepSpeed engine around a task; the process group has been started.

    Weights stay float32: bf16 is autocast's, since DeepSpeed's own `bf16` section would cast teacher and temperature,
    too. Stage 0 does not clip: it would not tell the norm.
    """
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue] (or a C++ extension would be built)
    os.environ.setdefault("LOCAL_RANK", "0")  # its presence is asserted
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # batches are the loader's; here they count for nothing
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": (grad_clip or 0.0) if stage else 0.0,
        "zero_optimization": {"stage": stage},
        # "safe" modules would have their gradients reduced in bf16, and the result would depend on the number of
        # processes
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 10**9,
    }
    engine = deepspeed.initialize(model=task, optimizer=optimizer, config=config, dist_init_required=False)[0]
    engine.enable_backward_allreduce = (
        stage > 0 or world() > 1
    )  # alone at stage 0 it would copy all gradients for nothing
    return engine


def sync_master_weights(engine: Any, parameters: list[torch.nn.Parameter]) -> None:
    """Copies edited parameters into ZeRO's fp32 master weights."""
    if engine.zero_optimization():
        for parameter in parameters:
            safe_set_full_fp32_param(parameter, parameter.detach())


def discard_gradients(engine: Any) -> None:
    """Discards the gradients of an abandoned step."""
    engine.zero_grad()
    if engine.zero_optimization():
        engine.optimizer.zero_grad()
        if not engine.zero_optimization_partition_weights():
            engine.optimizer.averaged_gradients = {}
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()


def whole_state(engine: Any, stepped: bool) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a restart needs, by kind and name: `model/...`, and where an optimizer step was made
    `exp_avg/...` and so on.

    Collective: all ranks go through it together. A tensor may change with the next step: copy what is to be kept.
    """
    module = engine.module
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in persistent:
            yield f"model/{name}", buffer
    link_optimizer_states(engine, stepped)
    for name, parameter in module.named_parameters():
        with whole([parameter]):
            yield f"model/{name}", parameter.detach()
        if stepped and parameter.requires_grad:
            for moment in MOMENTS:
                yield f"{moment}/{name}", moment_of(engine, parameter, moment)


def restore_moments(engine: Any, state: Mapping[str, Tensor], step: int) -> None:
    """Gives the optimizer the moments of `whole_state`; the weights were loaded before the task was wrapped."""
    adam, parameters = adam_of(engine)
    for parameter in parameters:  # AdamW makes its state in the first step: here it must exist before
        adam.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    link_optimizer_states(engine, True)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for moment in MOMENTS:
                value = state[f"{moment}/{name}"].to(engine.device)
                match engine.zero_optimization_stage():
                    case 0:
                        adam.state[parameter][moment].copy_(value)
                    case 3:  # by parts: of a whole it cannot take one that the ranks do not divide evenly
                        size = safe_get_local_optimizer_state(parameter, moment).numel()
                        padded = F.pad(value.flatten(), (0, size * world() - value.numel()))
                        safe_set_local_optimizer_state(parameter, padded[size * rank() : size * (rank() + 1)], moment)
                    case _:
                        safe_set_full_optimizer_state(parameter, value, moment)
    engine.global_steps = step


def adam_of(engine: Any) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """The optimizer inside, and the tensors it steps: under ZeRO this rank's parts of flattened groups."""
    match engine.zero_optimization_stage():
        case 0:
            return engine.optimizer, [p for group in engine.optimizer.param_groups for p in group["params"]]
        case 3:
            return engine.optimizer.optimizer, engine.optimizer.fp32_partitioned_groups_flat
        case _:
            return engine.optimizer.optimizer, engine.optimizer.single_partition_of_fp32_groups


def link_optimizer_states(engine: Any, stepped: bool) -> None:
    """Links the moments of all parameter groups; DeepSpeed itself links those of the first group only."""
    if stepped and engine.zero_optimization() and not engine.zero_optimization_partition_weights():
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def moment_of(engine: Any, parameter: torch.nn.Parameter, moment: str) -> Tensor:
    if engine.zero_optimization():
        found = safe_get_full_optimizer_state(parameter, moment)
        assert found is not None
        return found
    # a parameter that no loss reaches, such as the final norm of an image encoder cut after a layer, has none
    found = engine.optimizer.state[parameter].get(moment)
    return torch.zeros_like(parameter) if found is None else found


def whole(parameters: list[torch.nn.Parameter]) -> Any:
    """A context in which parameters that ZeRO-3 spread over the ranks are whole."""
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    return deepspeed.zero.GatheredParameters(spread) if spread else nullcontext()
