"""A language model that takes embeddings as input: what both families share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip.batch import Tokens
from blip.config import ConfigError
from blip.models.bert import KVCache
from blip.models.generation import Beam, Decoding, Nucleus, Texts, beam_search, sample
from blip.models.language.config import LanguageModelConfig

WHOLE_TEXT = 1_000_000
"""Tokens of a text that is not cut."""


@dataclass
class Spoken:
    """Texts as a language model reads them: what is given, and what it is to say.

    Of a causal model `given` is empty, and `said` has the given tokens first, `skip` `(B,)` of them.
    """

    given: Tokens
    said: Tokens
    skip: Tensor

    def to(self, device: Any) -> "Spoken":
        return Spoken(self.given.to(device), self.said.to(device), self.skip.to(device))


class LanguageModelCache(KVCache):
    """The keys and values that a model of transformers keeps, and the mask of its positions."""

    def __init__(self) -> None:
        super().__init__(capacity=0)
        self.past: Any = None
        self.mask: Tensor | None = None

    def reorder(self, rows: Tensor) -> None:
        self.past.reorder_cache(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]


class LanguageModel(nn.Module, ABC):
    """A language model with its tokenizer, which reads soft prompts `(B, Q, D)` before words."""

    encoder_decoder: bool
    """Whether what is given is read by an encoder, and what is said comes from a decoder."""
    end: int
    """The token that ends a text."""

    def __init__(self, network: Any, tokenizer: Any, cfg: LanguageModelConfig):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.positions = getattr(network.config, "max_position_embeddings", None)
        """Most positions that the model can read; none if it has no limit."""
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        self.find_end(cfg)

    @abstractmethod
    def find_end(self, cfg: LanguageModelConfig) -> None:
        """Sets `end`. Raises ConfigError if the tokenizer lacks it."""

    @abstractmethod
    def speak(self, given: Sequence[str], said: Sequence[str], tokens: int) -> Spoken:
        """Returns pairs of texts as tokens; of each pair at most `tokens`, further ones are cut."""

    @abstractmethod
    def logits(self, soft: Tensor, texts: Spoken) -> Tensor:
        """Returns logits `(B, L, vocabulary)` of the tokens that are said, from soft prompts `(B, Q, D)` and before."""

    @abstractmethod
    def generate(
        self,
        soft: Tensor,
        given: Sequence[str],
        decoding: Decoding,
        uniforms: Tensor | None = None,
        tokens: int = WHOLE_TEXT,
    ) -> Texts:
        """Returns generated texts after soft prompts `(B, Q, D)` and texts that are given, of at most `tokens` tokens.

        Lengths of the decoding are of new tokens. Nucleus sampling takes its draws `(B, max_length)` from `uniforms`,
        or from torch's generator if None.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Maps ids `(B, L)` to word embeddings `(B, L, D)`."""
        return self.network.get_input_embeddings()(ids)

    def read(self, texts: Sequence[str], tokens: int) -> list[list[int]]:
        """Returns the token ids of texts, each cut to `tokens`, with what the tokenizer adds at begin and end."""
        return [ids[:tokens] for ids in self.tokenizer(list(texts), padding=False)["input_ids"]]

    def padded(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Returns rows of ids as `(B, L)`, padded to the longest."""
        length = max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, : len(row)] = True
        return Tokens(ids, mask)

    def decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """Returns generated ids as texts."""
        return [text.strip() for text in self.tokenizer.batch_decode(list(texts), skip_special_tokens=True)]

    def with_soft(self, soft: Tensor, given: Tokens) -> tuple[Tensor, Tensor]:
        """Returns the embeddings `(B, Q + L, D)` of soft prompts and words, and their mask."""
        words = self.embed(given.ids)
        return torch.cat([soft.to(words.dtype), words], 1), torch.cat(
            [given.mask.new_ones(soft.shape[:2]), given.mask], 1
        )

    def check_room(self, setting: str, soft: int, tokens: int) -> None:
        """Raises ConfigError if soft prompts and so many tokens are more than the model can read."""
        if self.positions is not None and soft + tokens > self.positions:
            raise ConfigError(
                f"{setting} is {tokens} tokens, which after {soft} queries are more than the {self.positions} "
                f"positions of the language model: lower it to {self.positions - soft} or less"
            )

    def search(
        self, step: Any, prompt: Tensor, seen: tuple[Tensor, Tensor], decoding: Decoding, uniforms: Tensor | None
    ) -> Texts:
        """Decodes from a prompt `(B, P)`, whose tokens do not count for the lengths of the decoding."""
        start = prompt.shape[1]
        longer = {"min_length": decoding.min_length + start, "max_length": decoding.max_length + start}
        decoding = decoding.model_copy(update=longer)
        cache = LanguageModelCache()
        match decoding:
            case Nucleus():
                size = (len(prompt), decoding.max_length)
                draws = torch.rand(size, device=prompt.device) if uniforms is None else uniforms
                return sample(step, prompt, [seen], decoding, draws, self.end, cache)
            case Beam():
                return beam_search(step, prompt, [seen], decoding, self.end, cache, as_transformers=True)
