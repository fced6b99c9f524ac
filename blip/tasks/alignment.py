"""ITC and ITM losses of a batch, shared by pre-training and retrieval (BLIP, section 3.2)."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.batch import Tokens
from blip.config import Config
from blip.distributed import all_gather
from blip.models.bert import KeysValues, TextTransformer
from blip.models.med import MED
from blip.objectives.contrastive import FeatureQueue, contrastive_loss
from blip.objectives.momentum import ema_update, momentum_copy
from blip.tasks.matching import SameImage, itm_loss, relations


class AlignmentConfig(Config):
    queue: int = Field(default=57600, ge=1, le=100_000_000)
    """Length of the queue: features of earlier batches that serve as ITC negatives."""
    momentum: float = Field(default=0.995, ge=0, le=1)
    """Momentum of the teacher's moving average; short trainings need a smaller one."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the ITC similarities; the initial value if it is learnt."""
    learn_temperature: bool = True
    """Learn the temperature.

    False fixes it: small models otherwise stall, since it reaches its bounds before the features are meaningful.
    """
    temperature_bounds: tuple[float, float] = (0.001, 0.5)
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Weight of the teacher's soft labels in the ITC targets."""
    alpha_epochs: float = Field(default=2.0, ge=0)
    """Epochs over which alpha increases linearly from 0 to its value."""
    same_image: SameImage = "masked"
    """Role in ITC of other texts of the same image: ignored, positives or negatives.

    The reference's pre-training uses `negative`.
    """
    compare_with: Literal["teacher", "student"] = "teacher"
    """Features that weight the candidates for hard negatives."""
    floor: float = Field(default=1e-4, ge=0)
    """Added to the sampling weight of every hard negative candidate."""
    negatives: Literal["rank", "world"] = "rank"
    """Draw ITM hard negatives from this process's batch, or from the batches of all processes."""
    most_likely_negatives: bool = False
    """Take the most likely candidate instead of sampling; for parity tests."""
    teacher_mode: Literal["eval", "train"] = "eval"
    """Mode of the teacher; `train` keeps dropout as the reference does, for comparison of loss curves."""
    queue_init: Literal["empty", "random"] = "empty"
    """Initial queue; `random` vectors are negatives until overwritten, as in the reference, for parity tests."""

    @model_validator(mode="after")
    def bounds_are_in_order(self) -> Self:
        low, high = self.temperature_bounds
        if not 0 < low <= high:
            raise ValueError(
                f"alignment.temperature_bounds are {low} and {high}: the first must be above 0 and not above the second"
            )
        return self


class Alignment(nn.Module):
    """The ITC state (teacher, queue, temperature), and the ITC and ITM losses.

    The student is an argument of the methods, not a submodule.
    """

    def __init__(self, cfg: AlignmentConfig, student: MED):
        super().__init__()
        self.cfg = cfg
        self.alpha = 0.0
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.before: list[Tensor] = []
        """Copies of `changed_on_step`, from before the last `on_step`."""
        temperature = torch.full((1,), cfg.temperature)
        if cfg.learn_temperature:
            self.temperature = nn.Parameter(temperature)
        else:
            self.register_buffer("temperature", temperature)
        self.queue = FeatureQueue(cfg.queue, student.cfg.embed)
        if cfg.queue_init == "random":
            self.queue.fill_at_random()
        self.teacher = nn.ModuleDict({name: momentum_copy(getattr(student, name)) for name in MOMENTUM_PARTS})
        teacher_text = self.teacher["text_encoder"]
        assert isinstance(teacher_text, TextTransformer)
        for layer in teacher_text.layers:
            del layer.cross_attention  # the teacher encodes texts without images

    def train(self, mode: bool = True) -> "Alignment":
        """Sets the mode; the teacher stays in evaluation mode unless `teacher_mode` is `train`."""
        super().train(mode)
        self.teacher.train(mode and self.cfg.teacher_mode == "train")
        return self

    def on_step(self, student: MED, step: int, steps_per_epoch: int) -> list[nn.Parameter]:
        """Updates the teacher and alpha, once per optimizer step and before the teacher's features are computed.

        Clamps the temperature to its bounds. Returns it if it is learnt.
        """
        self.before = [tensor.detach().clone() for tensor in self.changed_on_step]
        ema_update(self.teacher, {name: getattr(student, name) for name in MOMENTUM_PARTS}, self.cfg.momentum)
        ramp = self.cfg.alpha_epochs * steps_per_epoch
        self.alpha = self.cfg.alpha * min(1.0, step / ramp if ramp else 1.0)
        self.temperature.data.clamp_(*self.cfg.temperature_bounds)
        return self.trained

    @property
    def changed_on_step(self) -> list[Tensor]:
        """The tensors that `on_step` changes."""
        return [*self.teacher.parameters(), self.temperature]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters that `on_step` changes; the optimizer may hold copies of them."""
        return [self.temperature] if isinstance(self.temperature, nn.Parameter) else []

    @torch.no_grad()
    def undo_step(self) -> list[nn.Parameter]:
        """Restores teacher and temperature from before `on_step`, and discards the step's features."""
        for tensor, old in zip(self.changed_on_step, self.before, strict=True):
            tensor.copy_(old)
        self.before = []
        self.pending.clear()
        return self.trained

    def after_step(self) -> None:
        """Enqueues the step's features in the order of the global batch, independent of the number of processes."""
        if self.pending:
            image, text, ids = (all_gather(torch.cat(parts)) for parts in zip(*self.pending, strict=True))
            self.queue.enqueue(image, text, ids)
            self.pending.clear()
        self.before = []

    @torch.no_grad()
    def momentum_features(self, images: Tensor, text: Tokens) -> tuple[Tensor, Tensor]:
        """Returns the teacher's normalised image and text features, both `(B, D)`."""
        t = self.teacher
        hidden = t["text_encoder"](text.ids, text.mask[:, None, None, :])
        image = nn.functional.normalize(t["vision_proj"](t["visual_encoder"](images)[:, 0]).float(), dim=-1)
        return image, nn.functional.normalize(t["text_proj"](hidden[:, 0]).float(), dim=-1)

    def itc_loss(
        self, image: Tensor, text: Tensor, images: Tensor, tokens: Tokens, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the ITC loss of student features `(B, D)`, and the logits that weight hard negatives.

        The logits are image-to-text and text-to-image, both `(B, B)`, or `(B, world B)` with negatives from all
        processes. In training, the batch's features enter the queue after the step.
        """
        teacher_image, teacher_text = self.momentum_features(images, tokens)
        # similarities of unit vectors need the precision of float32
        with torch.autocast(image.device.type, enabled=False):
            return self.itc_loss_of(image.float(), text.float(), teacher_image, teacher_text, ids)

    def itc_loss_of(
        self, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `itc_loss`, given the features `(B, D)` of student and teacher."""
        old_image, old_text, old_ids, written = self.queue.contents()
        keys_image, keys_text = torch.cat([teacher_image, old_image]), torch.cat([teacher_text, old_text])
        positive, excluded = self.relations(ids, torch.cat([ids, old_ids]), written)

        def logits(feature: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
            return (feature @ keys.T / temperature).masked_fill(excluded, -torch.inf)

        temperature, fixed = self.temperature, self.temperature.detach()
        i2t, t2i = logits(image, keys_text, temperature), logits(text, keys_image, temperature)
        loss = contrastive_loss(
            i2t,
            t2i,
            logits(teacher_image, keys_text, fixed),
            logits(teacher_text, keys_image, fixed),
            positive,
            self.alpha,
        )
        if self.training:
            self.pending.append((teacher_image, teacher_text, ids))
        candidates = (teacher_image, teacher_text) if self.cfg.compare_with == "teacher" else (image, text)
        if self.cfg.negatives == "world":
            candidates = (all_gather(candidates[0].detach()), all_gather(candidates[1].detach()))
        return loss, image @ candidates[1].T / temperature, text @ candidates[0].T / temperature

    def relations(self, ids: Tensor, keys: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two masks `(B, B + Q)`: the positive keys of each row, and the keys excluded from the softmax."""
        own = torch.eye(len(ids), len(keys), dtype=torch.bool, device=ids.device)
        same = ids[:, None] == keys[None, :]
        empty = torch.cat([torch.ones_like(ids, dtype=torch.bool), written]).logical_not().expand(len(ids), -1)
        return relations(same, own, empty, self.cfg.same_image)

    def itm_loss(
        self,
        student: MED,
        text: Tokens,
        image_tokens: Tensor,
        cross: list[KeysValues],
        i2t: Tensor,
        t2i: Tensor,
        ids: Tensor,
    ) -> Tensor:
        """Returns the ITM loss, 0-dim, over the pairs of the batch and their hard negatives."""
        return itm_loss(
            student.match,
            lambda tokens: student.text_encoder.cross_keys_values(tokens),
            text,
            image_tokens,
            cross,
            i2t,
            t2i,
            ids,
            same_image=self.cfg.same_image,
            world=self.cfg.negatives == "world",
            floor=self.cfg.floor,
            most_likely=self.cfg.most_likely_negatives,
        )


MOMENTUM_PARTS = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
"""Submodules of the student that have a momentum copy in the teacher."""
