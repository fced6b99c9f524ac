"""The tokenizer of the small language models, byte-level BPE as GPT-2's and OPT's."""

from collections.abc import Iterable
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
NEWLINE = "\n"
"""Ends what a decoder-only model writes, as BLIP-2 has it with OPT."""


def train_words(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a vocabulary of at most `size` entries on texts; the newline is one more."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, END, UNKNOWN], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    words.add_tokens([AddedToken(NEWLINE, normalized=False)])
    return words


def id_of(words: Tokenizer, token: str) -> int:
    found = words.token_to_id(token)
    assert found is not None
    return found


def as_transformers(words: Tokenizer, end: Literal["first", "last"]) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a language model: OPT has `</s>` first, T5 has it last."""
    own = Tokenizer.from_str(words.to_str())
    template = f"{END} $A" if end == "first" else f"$A {END}"
    own.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(END, id_of(own, END))])
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token=PAD, bos_token=END, eos_token=END, unk_token=UNKNOWN, padding_side="right"
    )
