"""Text cleaning and tokenization."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from blip.batch import Tokens
from blip.config import ConfigError

# A batch of captions is too small to gain from threads, and after their use the library warns of each fork of a worker.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BLIP_TOKENS = ("[DEC]", "[ENC]")
"""First tokens of the text decoder's input, and of the image-grounded text encoder's; the last two entries of the
vocabulary, in this order."""
ALPHABET = 1000
"""Most frequent letters in a trained vocabulary, at least (a quarter of its size if that is more); words with others
are [UNK]."""


class Tokenizer:
    """BERT's lower-case WordPiece, with [DEC] and [ENC] appended to the vocabulary."""

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "tokenizer"):
        missing = [token for token in BERT_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise ConfigError(
                f"{origin} lacks {', '.join(missing)}: a WordPiece vocabulary such as BERT's has all of "
                f"{', '.join(BERT_TOKENS)}"
            )
        backend.add_special_tokens([*BERT_TOKENS, *BLIP_TOKENS])
        self.backend = backend
        vocab = backend.get_vocab()
        self.vocab_size = len(vocab)
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ConfigError(
                f"{origin}: its {len(vocab)} tokens are not numbered from 0 on without gaps; "
                "copy it again from its source"
            )
        self.pad, self.cls, self.sep, self.dec, self.enc = (
            vocab[token] for token in ("[PAD]", "[CLS]", "[SEP]", *BLIP_TOKENS)
        )
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls), ("[SEP]", self.sep)]
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """Reads a folder written by `save` or by transformers, such as `bert-base-uncased`, or a `vocab.txt` with one
        token a line."""
        path = Path(path)
        vocab = path if path.is_file() else path / "vocab.txt"
        if (path / "tokenizer.json").is_file():
            backend = read_tokenizer_json(path / "tokenizer.json")
        elif vocab.is_file():
            backend = wordpiece(read_vocab(vocab), keeps_accents(path / "tokenizer_config.json"))
        else:
            raise ConfigError(f"tokenizer {path}: neither a vocab.txt nor a folder with tokenizer.json or vocab.txt")
        return cls(backend, f"tokenizer {path}")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Trains a vocabulary of at most `vocab_size` entries, including special tokens; deterministic.

        Accents are kept, since in other scripts they are vowels; BERT's own vocabularies have none.
        """
        texts = list(texts)
        backend = wordpiece({}, accents=True)
        assert backend.normalizer is not None
        letters = Counter(
            c for text in texts for c in sorted(set(backend.normalizer.normalize_str(text))) if not c.isspace()
        )
        alphabet = sorted(letter for letter, _ in letters.most_common(max(ALPHABET, vocab_size // 4)))
        # The trainer numbers letters inside words in an arbitrary order, and breaks ties by number. So they are passed
        # as special tokens, which keep their order.
        known = [*BERT_TOKENS, *alphabet, *("##" + letter for letter in alphabet)]
        size = vocab_size - len(BLIP_TOKENS)
        if size < len(known):
            least = len(known) + len(BLIP_TOKENS)
            raise ConfigError(
                f"tokenizer: vocabulary of {vocab_size} is too small, letters and special tokens alone are {least}; "
                "raise vocab_size, or name a tokenizer (ingest.vocab_size or ingest.tokenizer in a pipeline)"
            )
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=known, limit_alphabet=0, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return cls(wordpiece(backend.get_vocab(), accents=True))

    def save(self, path: str | Path) -> None:
        """Writes a folder that `from_folder` and transformers' tokenizer classes read."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.save(str(folder / "tokenizer.json"))
        self.backend.model.save(str(folder))
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "bos_token": "[DEC]",
            "additional_special_tokens": ["[ENC]"],
        }
        if getattr(self.backend.normalizer, "strip_accents", None) is False:
            settings["strip_accents"] = False
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def encode(self, texts: Sequence[str], max_length: int, pad_to: Literal["longest", "max"] = "longest") -> Tokens:
        """Returns ids `(B, L)`, int64, and mask: [CLS] first, [SEP] last, truncated to `max_length`, padded to the
        longest or to `max_length`."""
        self.backend.enable_truncation(max_length)
        encodings = self.backend.encode_batch_fast(list(texts))
        length = max_length if pad_to == "max" else max((len(e) for e in encodings), default=0)
        ids = torch.full((len(encodings), length), self.pad)
        mask = torch.zeros(len(encodings), length, dtype=torch.bool)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding)] = True
        return Tokens(ids, mask)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text, without [CLS] and [SEP] around it."""
        self.backend.no_truncation()
        return [len(found) for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def unknown(self, texts: Iterable[str]) -> float:
        """Returns the share of [UNK] among the tokens of texts, 0 to 1, without special tokens."""
        self.backend.no_truncation()
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        unk = self.backend.get_vocab()["[UNK]"]
        tokens = sum(len(encoding) for encoding in encodings)
        return sum(encoding.ids.count(unk) for encoding in encodings) / max(tokens, 1)

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Returns the texts of rows of ids `(B, L)`, which may differ in length, without special tokens; punctuation is
        joined to words."""
        return [join_punctuation(text) for text in self.backend.decode_batch([list(map(int, row)) for row in ids])]


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json`. Raises ConfigError if it is invalid."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_truncation()
        backend.no_padding()
        backend.encode("a \u4e00")
    except BaseException as e:  # the library raises plain Exception, and BaseException for panics in Rust
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        message = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ConfigError(
            f"tokenizer {path}: cannot be read ({message[:200]}); copy it again from its source"
        ) from None
    return backend


def read_vocab(path: Path) -> dict[str, int]:
    """Reads a `vocab.txt` as token to id. Raises ConfigError if it is invalid."""
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise ConfigError(
            f"tokenizer {path}: is not UTF-8 ({e.reason} at byte {e.start}); a vocabulary has a token a line"
        ) from None
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise ConfigError(
            f"tokenizer {path}: has {len(twice)} tokens more than once, among them {twice[0]!r}: "
            "a vocabulary has each in one line"
        )
    return {token: i for i, token in enumerate(tokens)}


def keeps_accents(path: Path) -> bool:
    """Returns whether a `tokenizer_config.json` keeps accents. Raises ConfigError if it is invalid."""
    if not path.is_file():
        return False
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"tokenizer {path}: is not JSON ({e})") from None
    return isinstance(settings, dict) and settings.get("strip_accents") is False


def wordpiece(vocab: dict[str, int], accents: bool = False) -> tokenizers.Tokenizer:
    """Returns BERT's lower-case tokenizer with a vocabulary; accents are stripped unless `accents` is set."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False if accents else None)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


JOINED_PUNCTUATION = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
"""Token sequences and how they are joined in text, in the order of the reference's decoder."""


def join_punctuation(text: str) -> str:
    """Joins `a man ' s hat` to `a man's hat`: the tokenizers library joins token by token, and misses sequences of
    three."""
    for apart, together in JOINED_PUNCTUATION.items():
        text = text.replace(apart, together)
    return text


CAPTION_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Returns a caption as models read it: lower case, without punctuation, at most `max_words` words."""
    text = CAPTION_PUNCTUATION.sub(" ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int = 50) -> str:
    """Returns a question as models read it: as a caption, but punctuation is removed, not replaced by spaces."""
    text = CAPTION_PUNCTUATION.sub("", text.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])
