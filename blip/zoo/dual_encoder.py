"""Models with one encoder for images and one for texts as filters: CLIP, SigLIP and their like.

Of transformers and of open_clip. They score by cosine similarity, and SigLIP by p(match), too.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from blip.config import ConfigError
from blip.distributed import device
from blip.zoo.config import DualEncoderConfig
from blip.zoo.contract import Determinism, ImageBatch, Scored, ScoreName, View, check_proportions
from blip.zoo.ours import padded
from blip.zoo.transformers_folder import from_folder, image_processor_of, tokenizer_of


class DualEncoder(ABC):
    """Scores texts by the similarity of two embeddings."""

    determinism: Determinism = "sample"
    view: View
    scale: Tensor | None
    """Scale and bias of SigLIP's logits; None without a bias, since a softmax over other texts is no p(match)."""
    bias: Tensor | None

    def __init__(self, cfg: DualEncoderConfig):
        self.cfg = cfg

    @abstractmethod
    def encode_images(self, views: list[Any]) -> Tensor:
        """Returns embeddings `(B, E)`."""

    @abstractmethod
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Returns embeddings `(B, E)`."""

    @property
    def gives(self) -> tuple[ScoreName, ...]:
        return ("similarity",) if self.bias is None else ("match", "similarity")

    def score(self, images: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scored]]:
        found: list[list[Scored]] = [[] for _ in texts]
        features = self.image_features(images)
        for number in range(max(map(len, texts), default=0)):
            asked = [some[number] if number < len(some) else "" for some in texts]
            with images.timed("filter"):
                read = [self.cfg.template.replace("{}", text) for text in padded(asked, images.batch)]
                similarity = (features * self.text_features(read)).sum(1)
                match = self.probability(similarity)
            for row, scores in enumerate(zip(match, similarity.tolist(), strict=True)):
                if row < len(texts) and number < len(texts[row]):
                    found[row].append(Scored(*scores))
        return found

    def image_features(self, images: ImageBatch) -> Tensor:
        """Returns unit vectors `(batch, E)`, float32, computed once for all texts."""
        part = ("features", id(self))
        if part not in images.memo:
            with images.timed("encode"):
                views = images.of(self.view)
                full = [*views, *views[-1:] * (images.batch - len(views))]
                images.memo[part] = F.normalize(self.encode_images(full).float(), dim=-1)
        return images.memo[part]

    def text_features(self, texts: list[str]) -> Tensor:
        """Returns unit vectors `(B, E)`, float32."""
        return F.normalize(self.encode_texts(texts).float(), dim=-1)

    def probability(self, similarity: Tensor) -> list[float] | list[None]:
        """Returns p(match) `(B,)` by SigLIP's sigmoid, or None for each."""
        if self.scale is None or self.bias is None:
            return [None] * len(similarity)
        return torch.sigmoid(similarity * self.scale.float().exp() + self.bias.float()).tolist()


class TransformersDualEncoder(DualEncoder):
    """A CLIP, SigLIP, ALIGN ... of transformers."""

    def __init__(self, folder: Path, cfg: DualEncoderConfig | None = None):
        """Raises ConfigError if transformers does not read the folder, or its model does not embed images and texts."""
        super().__init__(cfg or DualEncoderConfig())
        self.model = from_folder(AutoModel, folder, dtype=self.cfg.dtype).eval().to(device())
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            kind = type(self.model).__name__
            raise ConfigError(f"filter {folder}: {kind} does not embed images and texts, as CLIP and SigLIP do")
        self.image_processor = image_processor_of(folder)
        self.tokenizer = tokenizer_of(folder)
        self.length = self.model.config.text_config.max_position_embeddings
        self.scale = getattr(self.model, "logit_scale", None)
        self.bias = getattr(self.model, "logit_bias", None)
        self.view = View(f"{folder} by transformers", self.prepare)

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """Returns the model's input of one image. Raises BadSample."""
        check_proportions(image)
        return {name: value[0] for name, value in self.image_processor(images=[image], return_tensors="pt").items()}

    def encode_images(self, views: list[dict[str, Tensor]]) -> Tensor:
        stacked = {name: torch.stack([view[name] for view in views]).to(self.model.device) for name in views[0]}
        stacked["pixel_values"] = stacked["pixel_values"].to(self.model.dtype)
        return pooled(self.model.get_image_features(**stacked))

    def encode_texts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return pooled(self.model.get_text_features(**tokens.to(self.model.device)))


class OpenClipDualEncoder(DualEncoder):
    """A model of open_clip: a folder with `open_clip_config.json`."""

    def __init__(self, folder: Path, cfg: DualEncoderConfig | None = None):
        """Raises ConfigError if open_clip does not read the folder."""
        import open_clip  # takes a second, and is needed here alone

        super().__init__(cfg or DualEncoderConfig())
        precisions = {"auto": "fp32", "float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}
        try:
            loaded: Any = open_clip.create_model_from_pretrained(
                f"local-dir:{folder}", precision=precisions[self.cfg.dtype], device=device()
            )
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"filter {folder}: open_clip does not read it: {error}") from None
        model, transform = loaded
        self.model: Any = model.eval()
        self.scale, self.bias = self.model.logit_scale, getattr(self.model, "logit_bias", None)
        self.transform = transform
        self.view = View(f"{folder} by open_clip", self.prepare)

    def prepare(self, image: Image.Image) -> Tensor:
        """Returns the model's input of one image. Raises BadSample."""
        check_proportions(image)
        return self.transform(image)

    def encode_images(self, views: list[Tensor]) -> Tensor:
        weights = next(self.model.parameters())
        return self.model.encode_image(torch.stack(views).to(weights))

    def encode_texts(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(next(self.model.parameters()).device))


def pooled(output: Any) -> Tensor:
    """Returns the embeddings `(B, E)`, which some models return among other outputs."""
    return output if isinstance(output, Tensor) else output.pooler_output
