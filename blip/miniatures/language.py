"""The small language models: a decoder-only one as OPT, and one of encoder and decoder as T5."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from blip.config import Config
from blip.miniatures.documents import Document, documents
from blip.miniatures.training import descend
from blip.miniatures.words import END, NEWLINE, PAD, as_transformers, id_of
from blip.objectives.language_modeling import IGNORED
from blip.results import Point

ROWS = 16
"""Rows of a forward pass: texts of about the same length, so that few tokens are padding."""
LONG_DIALOGUES = 0.3
"""Share of dialogues that the encoder reads as a whole; shorter texts are faster to learn from."""
TokenPair = tuple[list[int], list[int]]
"""The tokens that a model reads, and its targets."""


class MiniatureLanguageConfig(Config):
    width: int = Field(default=64, ge=1, le=65536)
    depth: int = Field(default=2, ge=1, le=1000)
    """Layers; of encoder and of decoder each, if there are two."""
    heads: int = Field(default=4, ge=1, le=1024)
    positions: int = Field(default=160, ge=16, le=1_000_000)
    """Most tokens of the decoder-only model."""
    init_std: float = Field(default=0.1, gt=0, le=10)
    """Standard deviation of the decoder-only model's initial weights; about 1/sqrt(width) lets small models learn."""
    dialogues: float = Field(default=0.5, ge=0, le=1)
    """Share of documents with questions; the others have two captions."""
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=3e-3, gt=0, le=1)


def train_opt(cfg: MiniatureLanguageConfig, words: Tokenizer, seed: int, two_objects: float, out: Path) -> list[Point]:
    """Trains the decoder-only model, saves it with its tokenizer as transformers does, and returns its curve."""
    torch.manual_seed(seed)
    end, pad = id_of(words, END), id_of(words, PAD)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=cfg.width,
            word_embed_proj_dim=cfg.width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.heads,
            ffn_dim=4 * cfg.width,
            max_position_embeddings=cfg.positions,
            dropout=0.0,
            init_std=cfg.init_std,
            pad_token_id=pad,
            bos_token_id=end,
            eos_token_id=end,
        )
    )

    def logits_and_targets(read: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=read, attention_mask=read != pad).logits
        return logits[:, :-1], targets[:, 1:]

    curve = train_language(cfg, model, words, seed, two_objects, opt_pair, logits_and_targets)
    save_language(model, as_transformers(words, "first"), out)
    return curve


def train_t5(cfg: MiniatureLanguageConfig, words: Tokenizer, seed: int, two_objects: float, out: Path) -> list[Point]:
    """As `train_opt`, the model of encoder and decoder."""
    torch.manual_seed(seed)
    end, pad = id_of(words, END), id_of(words, PAD)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=words.get_vocab_size(),
            d_model=cfg.width,
            d_kv=cfg.width // cfg.heads,
            d_ff=2 * cfg.width,
            num_layers=cfg.depth,
            num_heads=cfg.heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=pad,  # pyright: ignore[reportCallIssue] (taken by the base class)
        )
    )

    def logits_and_targets(read: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return model(input_ids=read, attention_mask=read != pad, labels=targets).logits, targets

    curve = train_language(cfg, model, words, seed, two_objects, t5_pair, logits_and_targets)
    save_language(model, as_transformers(words, "last"), out)
    return curve


def train_language(
    cfg: MiniatureLanguageConfig,
    model: PreTrainedModel,
    words: Tokenizer,
    seed: int,
    two_objects: float,
    pair: Callable[[Document, Tokenizer, Random], TokenPair],
    logits_and_targets: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> list[Point]:
    """Trains a language model on documents; captions and answers weigh alike, though an answer is one word."""
    stream, rng = documents(seed, two_objects, cfg.dialogues), Random(f"{seed} language")
    pad = id_of(words, PAD)

    def loss_of() -> Tensor:
        drawn = [(document.is_dialogue, *pair(document, words, rng)) for document in islice(stream, cfg.batch)]
        drawn.sort(key=lambda row: len(row[1]))
        counts = {kind: sum(replies(found) for asked, _, found in drawn if asked is kind) for kind in (True, False)}
        parts = [drawn[start : start + ROWS] for start in range(0, len(drawn), ROWS)]
        return torch.stack([loss_of_part(part, counts) for part in parts]).sum()

    def loss_of_part(part: list[tuple[bool, list[int], list[int]]], counts: dict[bool, int]) -> Tensor:
        read, targets = padded([read for _, read, _ in part], pad), padded([found for *_, found in part], IGNORED)
        logits, targets = logits_and_targets(read, targets)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED).sum(1)
        return (losses / torch.tensor([counts[asked] for asked, *_ in part])).sum()

    return descend(model, loss_of, cfg.steps, cfg.lr)


def replies(targets: Sequence[int]) -> int:
    """Returns the number of targets that count."""
    return sum(target != IGNORED for target in targets)


def opt_pair(document: Document, words: Tokenizer, rng: Random) -> TokenPair:
    """Returns a document as one sequence: context, `</s>`, prompts and replies, newline; targets are the last two.

    Half of the time `</s>` is also the first token, as without an image.
    """
    end, newline = id_of(words, END), id_of(words, NEWLINE)
    read = [end] * (rng.random() < 0.5) + words.encode(document.context).ids + [end]
    targets = [IGNORED] * len(read)
    for turn in document.turns:
        prompt, reply = words.encode(turn.prompt).ids if turn.prompt else [], words.encode(turn.reply).ids
        read += prompt + reply
        targets += [IGNORED] * len(prompt) + reply
    return [*read, newline], [*targets, newline]


def t5_pair(document: Document, words: Tokenizer, rng: Random) -> TokenPair:
    """Returns what the encoder reads, and what the decoder shall write: the last reply, or the rest of a caption that
    is cut at random (prefix language modelling). Most dialogues are cut to their last question."""
    end = id_of(words, END)
    *before, last = document.turns
    before = before if rng.random() < LONG_DIALOGUES else []
    prompt, reply = last
    if not document.is_dialogue:
        caption = last.reply.split(" ")
        cut = rng.randrange(len(caption))
        prompt, reply = " ".join(caption[:cut]), " ".join(caption[cut:])
    read = " ".join(filter(None, [document.context, *(part for turn in before for part in turn), prompt]))
    return [*words.encode(read).ids, end], [*words.encode(reply).ids, end]


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Returns rows `(B, L)` of int64, padded to the longest."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def save_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Saves a model with its tokenizer as transformers does, in one folder."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
