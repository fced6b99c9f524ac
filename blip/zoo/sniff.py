"""Sizes and task of a BLIP checkpoint, read off its tensors' names and shapes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from blip.config import ConfigError
from blip.models.med import Sharing
from blip.models.weights.load import prefixes, without_prefix
from blip.models.weights.names import Spelling, huggingface, official, own

HEAD_WIDTH = 64
"""Width of an attention head in ViT and BERT of all usual sizes."""
CheckpointTask = Literal["pretraining", "captioning", "retrieval", "vqa", "nlvr"]

PATCHES = "visual_encoder.patch_embed.proj.weight"
POSITIONS = "visual_encoder.pos_embed"
WORD_EMBEDDINGS = ("text_encoder.embeddings.word.weight", "text_decoder.embeddings.word.weight")


class SniffedCheckpoint:
    """A checkpoint's tensors by our names, whatever program wrote it."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path):
        """Raises ConfigError if the tensors are not those of a BLIP."""
        self.path = path
        for stripped in (without_prefix(tensors, prefix) for prefix in ("", *prefixes(tensors))):
            for spelling in (own, official, huggingface):
                if spelling(PATCHES)[0] in stripped and any(spelling(name)[0] in stripped for name in WORD_EMBEDDINGS):
                    self.tensors, self.spelling = stripped, spelling
                    return
        raise ConfigError(
            f"model {path}: is no checkpoint of BLIP, it has no image encoder with a text part under any known names"
        )

    spelling: Spelling
    tensors: Mapping[str, Tensor]

    def find(self, name: str) -> Tensor | None:
        """Returns a tensor by our name, or None."""
        return next((self.tensors[key] for key in self.spelling(name) if key in self.tensors), None)

    def get(self, name: str) -> Tensor:
        """Returns a tensor by our name. Raises ConfigError if there is none."""
        found = self.find(name)
        if found is None:
            raise ConfigError(f"model {self.path}: is no whole checkpoint of BLIP, it lacks {self.spelling(name)[0]}")
        return found

    def count(self, name: str) -> int:
        """Returns the number of layers that have the tensor `name`, in which `{}` stands for the layer's number."""
        number = 0
        while self.find(name.format(number)) is not None:
            number += 1
        return number

    @property
    def task(self) -> CheckpointTask:
        """The task that the checkpoint was trained for, by its parts. Raises ConfigError if it has too few."""
        encoder, decoder = (
            self.find(f"text_{part}.embeddings.word.weight") is not None for part in ("encoder", "decoder")
        )
        if self.find("cls_head.0.weight") is not None:
            return "nlvr"
        if self.find("itm_head.weight") is not None:
            return "pretraining" if decoder else "retrieval"
        if encoder and decoder:
            return "vqa"
        if decoder:
            return "captioning"
        raise ConfigError(f"model {self.path}: has an image encoder but no text part with a head, so it does no task")

    def sizes(self, text_config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of a MEDConfig; `text_config` holds those of a `med_config.json`, empty without one.

        Raises ConfigError if the number of heads can only be asked for.
        """
        width, _, patch, _ = self.get(PATCHES).shape
        side = math.isqrt(self.get(POSITIONS).shape[1] - 1)
        part = "text_decoder" if self.task == "captioning" else "text_encoder"
        vocabulary, text_width = self.get(f"{part}.embeddings.word.weight").shape
        embed = self.find("vision_proj.weight")
        vision = {
            "size": side * patch,
            "patch": patch,
            "width": width,
            "depth": self.count("visual_encoder.blocks.{}.norm1.weight"),
            "heads": heads_of(width, {}),
        }
        text = {
            "vocab_size": vocabulary,
            "width": text_width,
            "depth": self.count(f"{part}.layers.{{}}.feed_forward.up.weight"),
            "heads": heads_of(text_width, text_config),
            "feed_forward": self.get(f"{part}.layers.0.feed_forward.up.weight").shape[0],
            "positions": self.get(f"{part}.embeddings.position.weight").shape[0],
        }
        if "layer_norm_eps" in text_config:
            text["eps"] = text_config["layer_norm_eps"]
        return {
            "vision": vision,
            "text": text,
            **({} if embed is None else {"embed": embed.shape[0]}),
            "share": self.share,
        }

    @property
    def share(self) -> Sharing:
        """The modules that text encoder and decoder share: those whose tensors are equal."""
        if self.task != "pretraining":
            return "all_but_self_attention"
        shared = {
            part: self.is_shared(part) for part in ("feed_forward.up", "self_attention.query", "cross_attention.query")
        }
        match tuple(shared.values()):
            case (True, True, True):
                return "all"
            case (True, True, False):
                return "all_but_cross_attention"
            case (True, False, True):
                return "all_but_self_attention"
            case _:
                return "none"

    def is_shared(self, part: str) -> bool:
        """Returns whether a module has equal weights in text encoder and decoder."""
        one, other = (self.get(f"text_{side}.layers.0.{part}.weight") for side in ("encoder", "decoder"))
        return torch.equal(one, other)


def heads_of(width: int, text_config: Mapping[str, Any]) -> int | None:
    """Returns the number of attention heads of a width, or None if it is not known: the tensors do not have it."""
    if heads := text_config.get("num_attention_heads"):
        return heads
    return width // HEAD_WIDTH if width % HEAD_WIDTH == 0 and width > HEAD_WIDTH else None
