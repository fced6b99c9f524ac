"""ITC and ITM losses of a Q-Former: in-batch negatives, images compared by their best query (BLIP-2, section 3.2)."""

import logging
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Tokens
from blip.config import Config
from blip.distributed import all_gather
from blip.models.bert import KeysValues
from blip.models.blip2 import QFormerModel, best_query
from blip.objectives.contrastive import smoothed_targets, soft_cross_entropy
from blip.tasks.matching import SameImage, itm_loss, own_columns, relations

log = logging.getLogger(__name__)

TEMPERATURES = (0.001, 0.5)
"""Temperatures outside of this range are reported: the similarities then say little."""


class QueryAlignmentConfig(Config):
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of the ITC similarities; the initial value if it is learnt."""
    learn_temperature: bool = True
    """Learn the temperature, without bounds."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing of the ITC targets."""
    same_image: SameImage = "masked"
    """Role in ITC of other texts of the same image; the reference's pre-training uses `negative`."""
    negatives: Literal["rank", "world"] = "world"
    """Compare with this process's micro-batch, or with those of all processes.

    With `world` and without accumulation these are the whole batch, whatever the number of processes; with accumulation
    (`loader.micro_batch` times processes below `loader.batch`), and with `rank`, there are fewer the fewer processes
    there are, and the loss is smaller. To go on with fewer processes and as many negatives raise `loader.micro_batch`.
    """
    floor: float = Field(default=0.0, ge=0)
    """Added to the probability of every candidate for an ITM negative; about 0.03 lets small models leave the prior."""
    most_likely_negatives: bool = False
    """Take the most likely candidate for ITM instead of sampling; for parity tests."""


class QueryAlignment(nn.Module):
    """The temperature, and the ITC and ITM losses. The model is an argument of the methods, not a submodule."""

    def __init__(self, cfg: QueryAlignmentConfig):
        super().__init__()
        self.cfg = cfg
        self.reported = False
        temperature = torch.full((1,), cfg.temperature)
        if cfg.learn_temperature:
            self.temperature = nn.Parameter(temperature)
        else:
            self.register_buffer("temperature", temperature)

    def after_step(self) -> None:
        """Logs a warning, once, if the learnt temperature has left its useful range."""
        if not self.cfg.learn_temperature or self.reported:
            return
        value = self.temperature.item()
        if not TEMPERATURES[0] <= value <= TEMPERATURES[1]:
            self.reported = True
            log.warning(
                "the ITC temperature is %.4g, outside of %g to %g: hold it with alignment.learn_temperature=false, or "
                "lower optimizer.lr",
                value,
                *TEMPERATURES,
            )

    def itc_loss(self, image: Tensor, text: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the ITC loss of features of images `(B, Q, E)` and texts `(B, E)`, and the logits of both directions.

        The logits, image-to-text and text-to-image, are `(B, N)` over the texts and images of this process or of all;
        these keys have no gradient.
        """
        world = self.cfg.negatives == "world"
        # similarities of unit vectors need the precision of float32
        with torch.autocast(image.device.type, enabled=False):
            image, text = image.float(), text.float()
            images, texts, keys = (
                (all_gather(image), all_gather(text), all_gather(ids)) if world else (image, text, ids)
            )
            i2t = best_query(image, texts) / self.temperature
            t2i = best_query(images, text).T / self.temperature
            positive, excluded = self.relations(ids, keys)
            targets = smoothed_targets(positive, excluded, self.cfg.smoothing)
            losses = [soft_cross_entropy(logits.masked_fill(excluded, -torch.inf), targets) for logits in (i2t, t2i)]
            return (losses[0] + losses[1]) / 2, i2t, t2i

    def relations(self, ids: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two masks `(B, N)`: the positive keys of each row, and the keys excluded from the softmax."""
        own = own_columns(ids, keys, self.cfg.negatives == "world")
        same = ids[:, None] == keys[None, :]
        return relations(same, own, torch.zeros_like(own), self.cfg.same_image)

    def itm_loss(
        self,
        model: QFormerModel,
        text: Tokens,
        image_tokens: Tensor,
        cross: list[KeysValues],
        i2t: Tensor,
        t2i: Tensor,
        ids: Tensor,
    ) -> Tensor:
        """Returns the ITM loss, 0-dim, over the pairs of the batch and their hard negatives."""
        return itm_loss(
            model.match,
            model.qformer.cross_keys_values,
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
