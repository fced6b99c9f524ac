"""Causal language models, such as OPT."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blip.batch import Tokens
from blip.config import ConfigError
from blip.models.bert import KVCache
from blip.models.generation import Decoding, Texts
from blip.models.language.config import LanguageModelConfig
from blip.models.language.language_model import WHOLE_TEXT, LanguageModel, LanguageModelCache, Spoken


class DecoderOnly(LanguageModel):
    """A causal language model: soft prompts, then the words that are given, then those that are said."""

    encoder_decoder = False

    def find_end(self, cfg: LanguageModelConfig) -> None:
        self.end_text = cfg.end
        ids = self.tokenizer(cfg.end, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"model.language_model.end is {cfg.end!r}, which is no single word of the tokenizer of {cfg.source}: "
                f"name one of its words, such as {self.tokenizer.eos_token!r}"
            )
        self.end = ids[0]
        network = inspect.signature(self.network.forward).parameters
        self.takes_positions, self.keeps_logits = "position_ids" in network, "logits_to_keep" in network

    def speak(self, given: Sequence[str], said: Sequence[str], tokens: int) -> Spoken:
        whole = [f"{first.rstrip()} {then}".lstrip() for first, then in zip(given, said, strict=True)]
        rows = [[*ids, self.end] for ids in self.read(whole, tokens - 1)]
        skip = [len(self.read([first.rstrip()], tokens)[0]) if first else 0 for first in given]
        texts = self.padded(rows)
        return Spoken(Tokens(texts.ids[:, :0], texts.mask[:, :0]), texts, torch.tensor(skip))

    def logits(self, soft: Tensor, texts: Spoken) -> Tensor:
        inputs, mask = self.with_soft(soft, texts.said)
        found = self.network(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False).logits
        return found[:, soft.shape[1] - 1 : -1]

    def generate(
        self,
        soft: Tensor,
        given: Sequence[str],
        decoding: Decoding,
        uniforms: Tensor | None = None,
        tokens: int = WHOLE_TEXT,
    ) -> Texts:
        words = self.padded(self.read([text.rstrip() for text in given], tokens)).to(soft.device)
        embeds, mask = self.with_soft(soft, words)
        # padding comes first, so that the next word follows the last one
        shift = (torch.arange(mask.shape[1], device=mask.device)[None] - (~mask).sum(1, keepdim=True)) % mask.shape[1]
        seen = embeds.gather(1, shift[:, :, None].expand_as(embeds)), mask.gather(1, shift)
        nothing = torch.empty(len(soft), 0, dtype=torch.long, device=soft.device)
        return self.search(self.step, nothing, seen, decoding, uniforms)

    def step(self, ids: Tensor, seen: list[tuple[Tensor, Tensor]], cache: KVCache) -> Tensor:
        """Returns logits `(B, vocabulary)` after the new ids `(B, L)`, which the cache takes up."""
        assert isinstance(cache, LanguageModelCache)
        [(embeds, mask)] = seen
        new, before = self.embed(ids), mask if cache.mask is None else cache.mask
        inputs = new if cache.past is not None else torch.cat([embeds, new], 1)
        cache.mask = torch.cat([before, before.new_ones(ids.shape)], 1)
        options: dict[str, Any] = {}
        if self.takes_positions:
            options["position_ids"] = (cache.mask.long().cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        if self.keeps_logits:
            options["logits_to_keep"] = 1
        output = self.network(
            inputs_embeds=inputs,
            attention_mask=cache.mask.long(),
            past_key_values=cache.past,
            use_cache=True,
            **options,
        )
        cache.past = output.past_key_values
        return output.logits[:, -1]
