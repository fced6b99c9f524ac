"""Captioner and filter as generators over chunks of pairs (BLIP, section 3.3).

`with_scores(with_synthetic(chunks(...), captioner), text_filter)`.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from blip.capfilt.pairs import Pair, Text
from blip.capfilt.quality import TextFault
from blip.capfilt.rules import FATAL
from blip.capfilt.sample_rng import sample_uniforms
from blip.config import Config
from blip.data.transforms import normalise
from blip.models.bert import KeysValues, TextTransformer
from blip.models.generation import Beam, Decoding, Nucleus, beam_search, sample
from blip.models.med import MED
from blip.tasks.captioning import Captioning
from blip.tasks.retrieval import Retrieval


class StreamConfig(Config):
    batch: int = Field(default=64, ge=1, le=1_000_000)
    """Images per batch. A shard's last batch is padded, because the last digits of results depend on the shape."""
    captions: int = Field(default=1, ge=1, le=1000)
    """Synthetic texts per image."""
    decoding: Decoding = Nucleus()
    """Decoding of the synthetic texts."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seeds nucleus sampling, together with the sample's key."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is at least twice as fast on GPUs and on CPUs with AVX512-BF16 or AMX."""

    @model_validator(mode="after")
    def texts_differ(self) -> Self:
        if isinstance(self.decoding, Beam) and self.captions > 1:
            raise ValueError(
                f"captions is {self.captions}, but beam search has one best text: use nucleus decoding or one caption"
            )
        return self


@dataclass
class Chunk:
    """A batch of pairs, with caches of what models with shared weights compute of its images."""

    pairs: list[Pair]
    cfg: StreamConfig
    device: torch.device
    spent: Counter[str]
    """Nanoseconds by part: input, encode, decode, filter."""
    image_tokens: dict[int, Tensor] = field(default_factory=dict)
    """By the identity of the image encoder."""
    keys_values: dict[int, list[KeysValues]] = field(default_factory=dict)
    """By the identity of the first cross-attention layer."""

    @property
    def live(self) -> list[Pair]:
        """The pairs that were not skipped."""
        return [pair for pair in self.pairs if pair.pixels]

    def padded(self, rows: list[str]) -> list[str]:
        """Pads to the batch size with empty strings."""
        return rows + [""] * (self.cfg.batch - len(rows))

    def encode(self, model: MED) -> Tensor:
        """Returns image tokens `(batch, N, D)`, live pairs first, then padding."""
        if id(model.visual_encoder) not in self.image_tokens:
            with self.timed("encode"):
                size = model.cfg.vision.size
                images = torch.zeros(self.cfg.batch, 3, size, size, dtype=torch.uint8)
                for row, pair in enumerate(self.live):
                    images[row] = pair.pixels[size]
                self.image_tokens[id(model.visual_encoder)] = model.encode_image(normalise(images.to(self.device)))
        return self.image_tokens[id(model.visual_encoder)]

    def cross(self, model: MED, reader: TextTransformer) -> list[KeysValues]:
        """Returns the cross-attention keys and values of the images, computed once for all texts."""
        attention = id(reader.layers[0].cross_attention)
        if attention not in self.keys_values:
            tokens = self.encode(model)
            with self.timed("encode"):
                self.keys_values[attention] = reader.cross_keys_values(tokens)
        return self.keys_values[attention]

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time of a part to `spent`; runs it in the configured precision, without gradients."""
        began = time.perf_counter_ns()
        half = self.cfg.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.spent[what] += time.perf_counter_ns() - began


def to_bfloat16(model: nn.Module) -> None:
    """Casts linear and convolution weights to bfloat16 once, which autocast would do in every call."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)


def chunks(pairs: Iterable[Pair], cfg: StreamConfig, device: torch.device, spent: Counter[str]) -> Iterator[Chunk]:
    """Yields pairs in order, in batches."""
    rest = iter(pairs)
    while True:
        began = time.perf_counter_ns()
        chunk = Chunk(list(islice(rest, cfg.batch)), cfg, device, spent)
        spent["input"] += time.perf_counter_ns() - began
        if not chunk.pairs:
            return
        yield chunk


def with_synthetic(stream: Iterable[Chunk], captioner: Captioning) -> Iterator[Chunk]:
    """Adds `captions` synthetic texts to each pair; they depend only on sample key, seed and model."""
    model = captioner.model
    for chunk in stream:
        cfg, live = chunk.cfg, chunk.live
        if live:
            cross = chunk.cross(model, model.text_decoder)
            prompt = captioner.prompt(cfg.batch).to(chunk.device)
            for number in range(cfg.captions):
                with chunk.timed("decode"):
                    match cfg.decoding:
                        case Nucleus():
                            keys = chunk.padded([pair.key for pair in live])
                            draws = sample_uniforms(keys, cfg.seed, number, cfg.decoding.max_length).to(chunk.device)
                            written = sample(
                                model.decode_step, prompt, cross, cfg.decoding, draws, model.cfg.tokens.sep
                            )
                        case Beam():
                            written = beam_search(model.decode_step, prompt, cross, cfg.decoding, model.cfg.tokens.sep)
                    texts = captioner.tokenizer.decode(written.ids[: len(live)])
                for pair, text, score in zip(live, texts, written.log_probability.tolist()[: len(live)], strict=True):
                    faults: list[TextFault] = [] if text.strip() else ["empty"]
                    pair.texts.append(Text("synthetic", text, faults, log_probability=rounded(score, 4, pair.key)))
        yield chunk


def with_scores(stream: Iterable[Chunk], text_filter: Retrieval) -> Iterator[Chunk]:
    """Adds p(match) and similarity to each text, web and synthetic."""
    model = text_filter.model
    for chunk in stream:
        live = chunk.live
        for number in range(max((len(pair.texts) for pair in live), default=0)):
            asked = [pair.texts[number] if number < len(pair.texts) else None for pair in live]
            tokens, cross = chunk.encode(model), chunk.cross(model, model.text_encoder)
            with chunk.timed("filter"):
                texts = chunk.padded([text.text if text else "" for text in asked])
                match, similarity = (scores.tolist() for scores in text_filter.match_tokens(tokens, cross, texts))
            for row, text in enumerate(asked):
                if text and not FATAL.intersection(text.faults):
                    text.match = rounded(match[row], 5, live[row].key)
                    text.similarity = rounded(similarity[row], 5, live[row].key)
        yield chunk


def rounded(score: float, digits: int, key: str) -> float:
    """Rounds off the digits that depend on the rest of the batch. Raises ValueError if the score is not finite."""
    if not math.isfinite(score):
        raise ValueError(
            f"sample {key!r}: a model gave {score} as its score; its weights are broken, or float32 is needed"
        )
    return round(score, digits)
