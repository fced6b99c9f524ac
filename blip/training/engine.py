"""One optimizer step of any task, on any number of processes."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blip.batch import Batch
from blip.config import Config
from blip.distributed import all_gather_objects, all_reduce_sum, device, init_distributed, rank, world
from blip.tasks.task import Task
from blip.training.optimizer import OptimizerConfig, ScheduleConfig, build_optimizer, learning_rate, set_learning_rate

TRAINING_FORMAT = 1
"""Increased when the same configuration, data and initial weights lead to different weights; runs then start anew."""


class EngineConfig(Config):
    zero: Literal[0, 1, 2, 3] | None = None
    """ZeRO stage: 0 shards nothing over processes, 1 optimizer states, 2 also gradients, 3 also weights.

    None is 1, or 0 on a single process.
    """
    precision: Literal["auto", "fast", "fp32", "bf16"] = "auto"
    """Precision of matrix multiplications; weights stay float32.

    `auto` is bf16 on GPUs and fp32 on CPUs; `fast` is bf16 also on CPUs that have instructions for it.
    """
    deterministic: bool | None = None
    """Use deterministic algorithms, so that equal seeds give bitwise equal weights.

    None enables them on CPUs, where they cost nothing, and disables them on GPUs.
    """
    timeout: float = Field(default=1800.0, gt=0)
    """Timeout of a collective in seconds; after it the run ends with a stack trace of every process."""


def precision(cfg: EngineConfig) -> Literal["fp32", "bf16"]:
    """Returns the precision of matrix multiplications on this machine."""
    if cfg.precision in ("fp32", "bf16"):
        return cfg.precision
    fast = torch.cuda.is_available() or (cfg.precision == "fast" and cpu_has_bf16())
    return "bf16" if fast else "fp32"


def cpu_has_bf16() -> bool:
    """Returns whether this CPU multiplies matrices in bf16; without instructions for it bf16 is slower than fp32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def check_teacher(cfg: EngineConfig, momentum_teacher: bool) -> None:
    """Raises ValueError if ZeRO-3 is combined with a momentum teacher."""
    if cfg.zero == 3 and momentum_teacher:
        raise ValueError(
            "engine.zero is 3, but this task has a momentum teacher: ZeRO-3 leaves each process a part of the "
            "weights, and a teacher that "
            "follows parts learns nothing; set engine.zero to 2 or less (models of this size gain nothing by 3)"
        )


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite; the optimizer step was not applied."""

    def __init__(self, step: int, names: list[str], keys: list[str]):
        self.step, self.names, self.keys = step, names, keys
        super().__init__(
            f"step {step}: not finite: {', '.join(names)}; samples: "
            f"{', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
        )


@dataclass
class StepReport:
    """Statistics of one optimizer step over all processes."""

    step: int
    """Number of steps so far, including this one."""
    last: bool
    """Whether the step is the run's last."""
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    samples: int
    tokens: int
    stop: bool
    """Whether any process received a stop signal."""
    seconds: float = 0.0
    """Duration of the step on this process."""
    waited: float = 0.0
    """Part of `seconds` in which this process waited for data."""


class Engine:
    """A task in training, with its DeepSpeed engine, optimizer and schedule; all ranks construct it together.

    `steps` is the total number of optimizer steps, `accumulation` the number of micro-batches per process and step.
    `state` is the return value of `state()` after `step` steps, from any number of processes and any ZeRO stage.
    """

    def __init__(
        self,
        task: Task,
        cfg: EngineConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        steps: int,
        steps_per_epoch: int,
        accumulation: int = 1,
        seed: int = 0,
        state: dict[str, Tensor] | None = None,
        step: int = 0,
    ):
        check_teacher(cfg, task.momentum_teacher)
        init_distributed(cfg.timeout)
        set_deterministic(device().type == "cpu" if cfg.deterministic is None else cfg.deterministic)
        # local import: DeepSpeed takes seconds to import
        from blip.training import zero

        self.zero = zero
        self.cfg, self.optimizer_cfg, self.schedule = cfg, optimizer, schedule
        self.steps, self.steps_per_epoch, self.accumulation, self.seed, self.step = (
            steps,
            steps_per_epoch,
            accumulation,
            seed,
            step,
        )
        self.count_flops, self.flops = False, 0
        self.device, self.stage = device(), (int(world() > 1) if cfg.zero is None else cfg.zero)
        if state is not None:
            load_model(task, state)
        self.task = task.to(self.device)
        adam = build_optimizer(self.task, optimizer)
        bf16 = precision(cfg) == "bf16"
        self.deepspeed = zero.wrap(self.task, adam, self.stage, accumulation, optimizer.grad_clip, bf16)
        self.trainable = [p for p in self.task.parameters() if p.requires_grad]
        if state is not None and step:
            zero.restore_moments(self.deepspeed, state, step)

    def train(self, micro_batches: list[Batch], stop: bool = False) -> StepReport:
        """Runs one optimizer step; `stop` is shared with all processes.

        Raises NonFiniteError on all ranks; weights, teacher and queue are then those before the step.
        """
        if not self.task.training:  # after an evaluation
            self.task.train()
        rate = learning_rate(self.schedule, self.optimizer_cfg.lr, self.step, self.steps, self.steps_per_epoch)
        set_learning_rate(self.deepspeed.optimizer.param_groups, rate)
        self.zero.sync_master_weights(self.deepspeed, self.task.on_step(self.step, self.steps_per_epoch))
        self.task.look_ahead(micro_batches)
        rows, names = [], []
        for i, batch in enumerate(micro_batches):
            # the seed depends on the micro-batch's position in the global batch, not on its rank
            torch.manual_seed(micro_seed(self.seed, self.step, rank() * self.accumulation + i))
            with self.counting_flops() if self.count_flops else nullcontext():
                losses = self.deepspeed(batch.to(self.device))
                self.deepspeed.backward(torch.stack(list(losses.values())).sum())
            names = list(losses)
            rows.append(torch.stack([loss.detach().double() for loss in losses.values()]))
            if i < self.accumulation - 1:
                self.deepspeed.step()
        norm = self.clip_gradient() if self.stage == 0 else torch.zeros(())
        means, counts = self.reduce_stats(torch.stack(rows), micro_batches, stop)
        norm = float(norm)
        if bad := [n for n, value in zip(names, means, strict=True) if not math.isfinite(value)]:
            raise self.undo_step(bad, micro_batches, torch.stack(rows).isfinite().all(1).tolist())
        if math.isfinite(norm):
            self.deepspeed.step()
            norm = norm if self.stage == 0 else float(self.deepspeed.get_global_grad_norm())
        if not math.isfinite(norm):  # ZeRO skips such a step itself
            raise self.undo_step(["gradient"], micro_batches, [False] * len(micro_batches))
        self.task.after_step()
        self.step += 1
        samples, tokens, told = counts
        losses = dict(zip(names, means, strict=True))
        return StepReport(self.step, self.step == self.steps, losses, rate, norm, int(samples), int(tokens), told > 0)

    def undo_step(self, names: list[str], micro_batches: list[Batch], fine: list[bool]) -> NonFiniteError:
        """Restores the state before the step. Returns the error that names the non-finite values."""
        self.zero.sync_master_weights(self.deepspeed, self.task.undo_step())
        self.zero.discard_gradients(self.deepspeed)
        return NonFiniteError(self.step, names, self.failed_samples(micro_batches, fine))

    @contextmanager
    def counting_flops(self) -> Iterator[None]:
        """Counts the FLOPs of one micro-batch, once; sets `flops`, the FLOPs of one step on this process."""
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops, self.count_flops = counter.get_total_flops() * self.accumulation, False

    def clip_gradient(self) -> Tensor:
        """Clips the gradient; returns its norm before clipping, 0-dim."""
        limit = self.optimizer_cfg.grad_clip
        return torch.nn.utils.clip_grad_norm_(self.trainable, math.inf if limit is None else limit)

    def reduce_stats(self, rows: Tensor, micro_batches: list[Batch], stop: bool) -> tuple[list[float], list[float]]:
        """Returns the mean losses `(names,)`, and the sums of samples, tokens and stop flags, over ranks.

        `rows` are the losses `(micro-batches, names)` of this rank. One small collective, and the only device
        synchronisation of a step. A loss that is not finite on one rank is not finite on all.
        """
        samples = sum(map(len, micro_batches))
        tokens = sum(int(b.text.mask.sum()) for b in micro_batches if b.text is not None)
        counts = torch.tensor([samples, tokens, stop], dtype=torch.float64, device=self.device)
        values = all_reduce_sum(torch.cat([rows.mean(0) / world(), counts])).tolist()
        return values[:-3], values[-3:]

    def failed_samples(self, micro_batches: list[Batch], fine: list[bool]) -> list[str]:
        """Returns the sample keys, over all ranks, of the micro-batches that are not `fine`."""
        own = [key for batch, ok in zip(micro_batches, fine, strict=True) if not ok for key in batch.ids]
        return [key for keys in all_gather_objects(own) for key in keys]

    def whole(self) -> AbstractContextManager[None]:
        """Returns a context in which every process holds the complete weights; collective."""
        return self.zero.whole(list(self.task.parameters()))

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Returns a copy in host memory of the state that a restart needs, on any number of processes; collective.

        Returns an empty state if `keep` is false.
        """
        copies = {}
        for name, tensor in self.zero.whole_state(self.deepspeed, self.step > 0):
            if keep:
                copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return copies


def set_deterministic(fixed: bool) -> None:
    """Enables or disables deterministic algorithms in this process, for example in gradients of embedding rows."""
    if fixed:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it for determinism
    torch.use_deterministic_algorithms(fixed, warn_only=True)


def load_model(task: Task, state: dict[str, Tensor]) -> None:
    """Loads weights and buffers strictly; a tied weight is stored once. Raises ValueError that names the mismatches."""
    tied = set(task.state_dict()) - {n for n, _ in task.named_parameters()} - {n for n, _ in task.named_buffers()}
    model = {name.removeprefix("model/"): tensor for name, tensor in state.items() if name.startswith("model/")}
    missing, unexpected = task.load_state_dict(model, strict=False)
    if unexpected or set(missing) - tied:
        raise ValueError(
            f"the state does not fit this model: missing {sorted(set(missing) - tied)[:5]}, unexpected {unexpected[:5]}"
        )


def micro_seed(seed: int, step: int, index: int) -> int:
    """Returns the seed of micro-batch `index` in the global batch of a step."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=7).digest())
