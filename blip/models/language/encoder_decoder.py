"""Encoder-decoder language models, such as T5, which read what is given and say the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip.batch import Tokens
from blip.config import ConfigError
from blip.models.bert import KVCache
from blip.models.generation import Decoding, Texts
from blip.models.language.config import LanguageModelConfig
from blip.models.language.language_model import WHOLE_TEXT, LanguageModel, LanguageModelCache, Spoken


class EncoderDecoder(LanguageModel):
    """An encoder-decoder language model: the encoder reads soft prompts and the words that are given."""

    encoder_decoder = True

    def find_end(self, cfg: LanguageModelConfig) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                f"model.language_model.source {cfg.source}: its tokenizer has no eos_token, by which a text ends; add "
                "it to its tokenizer_config.json"
            )
        self.end = self.tokenizer.eos_token_id
        self.first = self.network.config.decoder_start_token_id
        if self.first is None:
            raise ConfigError(
                f"model.language_model.source {cfg.source}: its config.json has no decoder_start_token_id, with which "
                "a text begins; add it"
            )

    def speak(self, given: Sequence[str], said: Sequence[str], tokens: int) -> Spoken:
        texts = self.padded([self.ended(ids) for ids in self.read(said, tokens)])
        return Spoken(self.padded(self.read(given, tokens)), texts, torch.zeros(len(given), dtype=torch.long))

    def ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.end else [*ids, self.end]

    def encode(self, soft: Tensor, given: Tokens) -> tuple[Tensor, Tensor]:
        """Returns the encoder's states `(B, Q + L, D)` and their mask."""
        inputs, mask = self.with_soft(soft, given)
        states = self.network.get_encoder()(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state
        return states, mask

    def logits(self, soft: Tensor, texts: Spoken) -> Tensor:
        states, mask = self.encode(soft, texts.given)
        begin = torch.full_like(texts.said.ids[:, :1], self.first)
        return self.network(
            encoder_outputs=(states,),
            attention_mask=mask.long(),
            decoder_input_ids=torch.cat([begin, texts.said.ids[:, :-1]], 1),
            decoder_attention_mask=torch.cat([torch.ones_like(begin), texts.said.mask[:, :-1].long()], 1),
            use_cache=False,
        ).logits

    def generate(
        self,
        soft: Tensor,
        given: Sequence[str],
        decoding: Decoding,
        uniforms: Tensor | None = None,
        tokens: int = WHOLE_TEXT,
    ) -> Texts:
        words = self.padded(self.read(given, tokens)).to(soft.device)
        begin = torch.full((len(soft), 1), self.first, device=soft.device)
        return self.search(self.step, begin, self.encode(soft, words), decoding, uniforms)

    def step(self, ids: Tensor, seen: list[tuple[Tensor, Tensor]], cache: KVCache) -> Tensor:
        """Returns logits `(B, vocabulary)` after the new ids `(B, L)`, which the cache takes up."""
        assert isinstance(cache, LanguageModelCache)
        [(states, mask)] = seen
        output = self.network(
            encoder_outputs=(states,),
            attention_mask=mask.long(),
            decoder_input_ids=ids,
            past_key_values=cache.past,
            use_cache=True,
        )
        cache.past = output.past_key_values
        return output.logits[:, -1]
