"""The project's own models, and all that are converted to them, as captioner and filter (BLIP, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blip.data.transforms import normalise
from blip.models.bert import KeysValues, TextTransformer
from blip.models.generation import Beam, Decoding, Nucleus, beam_search, sample
from blip.models.med import MED
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval
from blip.zoo.contract import ImageBatch, Scored, ScoreName, Written
from blip.zoo.draws import sample_uniforms
from blip.zoo.image_model import ImageModel, Precision


class OurModel(ImageModel[MED]):
    """A model with a batch's image tokens and cross-attention keys, which models with shared parts compute once."""

    def __init__(self, model: MED, precision: Precision):
        super().__init__(model, precision)
        if precision == "bfloat16":
            to_bfloat16(model)

    @property
    def encoder(self) -> nn.Module:
        return self.model.visual_encoder

    def image_tokens(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(normalise(pixels))

    def cross(self, images: ImageBatch, reader: TextTransformer) -> list[KeysValues]:
        """Returns the cross-attention keys and values of the images, computed once for all texts."""
        part = ("cross", id(reader.layers[0].cross_attention))
        if part not in images.memo:
            tokens = self.encode(images)
            with self.computing(images, "encode"):
                images.memo[part] = reader.cross_keys_values(tokens)
        return images.memo[part]


class OurCaptioner(OurModel):
    """Writes texts that depend only on the image, its key, the seed and the model."""

    def __init__(self, task: Captioning, decoding: Decoding, seed: int = 42, precision: Precision = "float32"):
        """Raises ConfigError if prompt and text exceed the model's positions."""
        task.check(decoding)
        super().__init__(task.model, precision)
        self.task, self.decoding, self.seed = task, decoding, seed

    def write(self, images: ImageBatch, keys: Sequence[str], number: int) -> list[Written]:
        model, decoding = self.model, self.decoding
        cross = self.cross(images, model.text_decoder)
        prompt = self.task.prompt(images.batch).to(self.device)
        with self.computing(images, "decode"):
            match decoding:
                case Nucleus():
                    draws = sample_uniforms(padded(keys, images.batch), self.seed, number, decoding.max_length)
                    draws = draws.to(self.device)
                    written = sample(model.decode_step, prompt, cross, decoding, draws, model.cfg.tokens.sep)
                case Beam():
                    written = beam_search(model.decode_step, prompt, cross, decoding, model.cfg.tokens.sep)
            texts = self.task.tokenizer.decode(written.ids[: len(images)])
        return [Written(*row) for row in zip(texts, written.log_probability.tolist()[: len(images)], strict=True)]


class OurFilter(OurModel):
    """Scores texts by ITM and ITC."""

    gives: tuple[ScoreName, ...] = ("match", "similarity")

    def __init__(self, task: Retrieval, precision: Precision = "float32"):
        super().__init__(task.model, precision)
        self.task = task

    def score(self, images: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scored]]:
        found: list[list[Scored]] = [[] for _ in texts]
        for number in range(max(map(len, texts), default=0)):
            asked = [some[number] if number < len(some) else "" for some in texts]
            tokens, cross = self.encode(images), self.cross(images, self.model.text_encoder)
            with self.computing(images, "filter"):
                match, similarity = self.task.match_tokens(tokens, cross, padded(asked, images.batch))
            for row, scores in enumerate(zip(match.tolist(), similarity.tolist(), strict=True)):
                if row < len(texts) and number < len(texts[row]):
                    found[row].append(Scored(*scores))
        return found


def padded(rows: Sequence[str], batch: int) -> list[str]:
    """Pads to the batch size with empty strings."""
    return [*rows, *[""] * (batch - len(rows))]


def to_bfloat16(model: nn.Module) -> None:
    """Casts linear and convolution weights to bfloat16 once, which autocast would do in every call."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
