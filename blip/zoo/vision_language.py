"""Any image-to-text model of transformers as captioner: LLaVA, Qwen-VL, Florence-2, GIT, BLIP-2 and their like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from blip.config import ConfigError, one_line
from blip.distributed import device
from blip.models.generation import Beam, Decoding, Nucleus, draw, penalise_repetition
from blip.zoo.config import VisionLanguageConfig
from blip.zoo.contract import Determinism, ImageBatch, View, Written, check_proportions
from blip.zoo.draws import sample_uniforms
from blip.zoo.transformers_folder import PROCESSORS, check_files, from_folder, image_processor_of, tokenizer_of

CHAT_QUESTION = "Describe this image in one short sentence."
"""Asked of models with a chat template unless a prompt is set."""
PROMPTS = {
    "florence2": "<CAPTION>",
    "paligemma": "caption en",
    "instructblip": "A short image description:",
}
"""What other models want to read unless a prompt is set, by model_type."""


class VisionLanguageCaptioner:
    """Writes texts of images by `generate`.

    Nucleus sampling takes its draws from the sample's key. Texts depend on their sample alone as long as all images of
    each batch become the same number of tokens; padding that other images of the batch decide makes it the shard.
    """

    def __init__(self, folder: Path, decoding: Decoding, seed: int = 42, cfg: VisionLanguageConfig | None = None):
        """Raises ConfigError if the folder is no image-to-text model, or the prompt does not suit it."""
        self.folder, self.cfg = folder, cfg or VisionLanguageConfig()
        self.decoding, self.seed = decoding, seed
        self.determinism: Determinism = "sample"
        self.view = View(f"picture of at most {self.cfg.longest} pixels a side", self.scaled)
        self.model = from_folder(AutoModelForImageTextToText, folder, dtype=self.cfg.dtype).eval().to(device())
        check_files(folder, PROCESSORS, "the settings of its images")
        processor = from_folder(AutoProcessor, folder)
        both = hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
        self.processor = processor if both else None
        self.tokenizer = processor.tokenizer if both else tokenizer_of(folder)
        self.image_processor = processor.image_processor if both else image_processor_of(folder)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        template = both and getattr(processor, "chat_template", None)
        if self.cfg.chat == "on" and not template:
            raise ConfigError(f"captioner {folder}: has no chat template; set captioner.chat=off")
        self.chats = bool(template) and self.cfg.chat != "off"
        if self.processor is None and self.cfg.prompt:
            raise ConfigError(f"captioner {folder}: takes no prompt, set captioner.prompt=null")
        if getattr(processor, "num_query_tokens", 0) is None:  # BLIP-2's of old: the prompt would be read without image
            processor.num_query_tokens = self.model.config.num_query_tokens
        self.prompt = default_prompt(self.model.config) if self.cfg.prompt is None else self.cfg.prompt
        self.works = False

    def scaled(self, image: Image.Image) -> Image.Image:
        """Returns an image whose longer side is at most `longest`. Raises BadSample."""
        check_proportions(image)
        if max(image.size) <= self.cfg.longest:
            return image
        smaller = image.copy()
        smaller.thumbnail((self.cfg.longest, self.cfg.longest), Image.Resampling.BICUBIC)
        return smaller

    def write(self, images: ImageBatch, keys: Sequence[str], number: int) -> list[Written]:
        pictures, size = images.of(self.view), self.cfg.batch
        found: list[Written] = []
        for start in range(0, len(pictures), size):
            part, part_keys = pictures[start : start + size], keys[start : start + size]
            missing = size - len(part)  # results depend on the shape of the batch in their last digits
            with images.timed("decode"):
                padded = [*part, *part[-1:] * missing]
                found += self.tried(padded, [*part_keys, *[""] * missing], number)[: len(part)]
        return found

    def tried(self, pictures: list[Image.Image], keys: Sequence[str], number: int) -> list[Written]:
        """As `generate`. Raises ConfigError if the model does not get through its first batch."""
        try:
            found = self.generate(pictures, keys, number)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if self.works:
                raise
            kind, reason = type(self.model).__name__, one_line(f"{type(error).__name__}: {error}")[:300]
            raise ConfigError(
                f"captioner {self.folder}: {kind} of transformers writes nothing for its first images ({reason}); see "
                "captioner.prompt, captioner.chat and captioner.batch, or name another model"
            ) from error
        self.works = True
        return found

    def generate(self, pictures: list[Image.Image], keys: Sequence[str], number: int) -> list[Written]:
        """Returns a text for each picture of a batch."""
        inputs = self.inputs(pictures)
        mask = inputs.get("attention_mask")
        if mask is not None and not mask.all():
            self.determinism = "shard"
        drawn = LogitsProcessorList()
        if isinstance(self.decoding, Nucleus):
            uniforms = sample_uniforms(keys, self.seed, number, self.decoding.max_length)
            drawn.append(Draw(self.decoding, uniforms.to(self.model.device)))
        out: Any = self.model.generate(**inputs, generation_config=self.generation(), logits_processor=drawn)
        beams = out.beam_indices if isinstance(self.decoding, Beam) and self.decoding.beams > 1 else None
        per_token = self.model.compute_transition_scores(out.sequences, out.logits, beams, normalize_logits=True)
        ids = out.sequences[:, -per_token.shape[1] :]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        real = self.before_end(ids) if beams is None else beams[:, : per_token.shape[1]] >= 0
        totals = per_token.float().masked_fill(~real, 0.0).sum(1)
        return [Written(text.strip(), total) for text, total in zip(texts, totals.tolist(), strict=True)]

    def inputs(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        """Returns what `generate` takes for a batch of pictures."""
        prompt = self.prompt
        if self.processor is None:
            found = self.image_processor(images=pictures, return_tensors="pt")
        elif self.chats:
            chats = [self.chat(picture, prompt or CHAT_QUESTION) for picture in pictures]
            template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            found = self.processor.apply_chat_template(chats, processor_kwargs={"padding": True}, **template)
        elif prompt is None:
            found = self.processor(images=pictures, return_tensors="pt")
        else:
            texts = [prompt] * len(pictures)
            found = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        to = {"device": self.model.device}
        return {
            name: value.to(**to, dtype=self.model.dtype) if value.is_floating_point() else value.to(**to)
            for name, value in found.items()
        }

    def chat(self, picture: Image.Image, prompt: str) -> list[dict[str, Any]]:
        """Returns the messages of a chat about a picture."""
        content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.cfg.system}]}]
        return [*(system if self.cfg.system else ()), {"role": "user", "content": content}]

    def generation(self) -> GenerationConfig:
        """Returns the settings of `generate`: the model's special tokens, and our decoding."""
        own = self.model.generation_config
        tokens = {
            name: getattr(own, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
            if getattr(own, name, None) is not None
        }
        tokens.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        tokens.setdefault("eos_token_id", self.tokenizer.eos_token_id)
        cfg = self.decoding
        search = {}
        if isinstance(cfg, Beam):
            penalties = {"length_penalty": cfg.length_penalty} if cfg.beams > 1 else {}
            search = {"num_beams": cfg.beams, "repetition_penalty": cfg.repetition_penalty, **penalties}
        return GenerationConfig(
            do_sample=False,
            min_new_tokens=cfg.min_length,
            max_new_tokens=cfg.max_length,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **tokens,
            **search,
        )

    def before_end(self, ids: Tensor) -> Tensor:
        """Returns which of the written tokens `(B, L)` belong to the text or end it; the rest is padding."""
        ends = self.generation().eos_token_id
        ended = torch.isin(ids, torch.tensor([] if ends is None else ends, device=ids.device).reshape(-1).to(ids))
        return ended.cumsum(1) - ended.long() == 0


def default_prompt(config: Any) -> str | None:
    """Returns what a model without a chat template reads unless it is set; None for nothing."""
    if config.model_type == "blip-2" and config.text_config.is_encoder_decoder:
        return ""  # its encoder wants the end of a text, and has no word that begins one
    return PROMPTS.get(config.model_type)


class Draw(LogitsProcessor):
    """Leaves one token of each row, drawn by nucleus sampling with given uniform numbers `(B, max_length)`."""

    def __init__(self, cfg: Nucleus, uniforms: Tensor):
        self.cfg, self.uniforms = cfg, uniforms
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.prompt is None:
            self.prompt = input_ids.shape[1]
        written = input_ids[:, self.prompt :]
        allowed = penalise_repetition(scores.float(), written, self.cfg.repetition_penalty)
        token = draw(allowed, self.cfg, self.uniforms[:, written.shape[1]])
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
