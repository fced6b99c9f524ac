import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer, clean_caption, clean_question

GOLDEN = Path(os.environ.get("BLIP_GOLDEN", "tests/golden"))
TEXTS = ["a red square on the left of a green picture", "a small red circle, left", "two hearts and a star"] * 3


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """The vocabulary of the golden files in the repository, which has the words used here."""
    return Tokenizer.from_folder("tests/golden/vocab.txt")


@pytest.mark.parametrize(
    "case",
    json.loads((GOLDEN / "misc.json").read_text())["text_cleaning"],
    ids=lambda c: f"{c['text'][:12]}-{c['max_words']}",
)
def test_cleaning_equals_the_reference(case):
    assert clean_caption(case["text"], case["max_words"]) == case["caption"]
    assert clean_question(case["text"], case["max_words"]) == case["question"]


def test_special_tokens_follow_the_vocabulary():
    golden = Tokenizer.from_folder(GOLDEN / "vocab.txt")
    meta = json.loads((GOLDEN / "meta.json").read_text())
    expected = (meta["pad"], meta["cls"], meta["sep"], meta["bos"], meta["enc"], meta["vocab_size"])
    assert (golden.pad, golden.cls, golden.sep, golden.dec, golden.enc, golden.vocab_size) == expected


def test_ids_and_mask(words):
    tokens = words.encode(["A red square", "dog", "treey"], 10)
    word = words.backend.token_to_id
    assert tokens.ids.tolist() == [
        [words.cls, word("a"), word("red"), word("square"), words.sep],
        [words.cls, word("dog"), words.sep, words.pad, words.pad],
        [words.cls, word("tree"), word("##y"), words.sep, words.pad],
    ]
    assert tokens.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]]
    assert tokens.ids.dtype == torch.int64


def test_long_texts_are_cut_and_keep_their_end(words):
    ids = words.encode(["a red dog and a black cat"], 5, "max").ids
    assert words.decode(ids) == ["a red dog"]
    assert ids[0, -1] == words.sep


def test_padding_to_the_length_asked_for(words):
    assert words.encode(["a dog"], 30, "max").ids.shape == (1, 30)
    assert words.encode([], 30, "max").ids.shape == (0, 30)
    assert words.encode([""], 30).ids.tolist() == [[words.cls, words.sep]]


def test_decoding_leaves_out_special_tokens_and_joins_pieces(words):
    ids = [words.dec, *words.encode(["is treey, right?"], 30).ids[0].tolist(), words.enc, words.pad]
    assert words.decode([ids, [words.sep]]) == ["is treey, right?", ""]


def test_marks_that_are_tokens_join_their_words_as_in_transformers(tmp_path):
    texts = ["a man's hat, isn't it? don't!", "the dogs' 'ring'. we've", "a-b"]
    ours = Tokenizer.train(texts, 200)
    ours.save(tmp_path)
    ids = ours.encode(texts, 40).ids
    theirs = BertTokenizerFast.from_pretrained(tmp_path)
    expected = [theirs.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=True) for row in ids]
    assert ours.decode(ids) == expected
    assert expected[0] == texts[0]


def test_a_text_cannot_smuggle_special_tokens_in(words):
    ids = words.encode([clean_caption("[SEP] [DEC] dog [ENC]")], 30).ids[0, 1:-1]
    assert not {words.sep, words.dec, words.enc} & set(ids.tolist())


def test_trained_tokenizer_reads_back_and_by_transformers(tmp_path):
    ours = Tokenizer.train(TEXTS, 200)
    ours.save(tmp_path)
    again, theirs = Tokenizer.from_folder(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    expected = ours.encode(TEXTS, 12, "max").ids
    assert torch.equal(again.encode(TEXTS, 12, "max").ids, expected)
    assert theirs(TEXTS, max_length=12, truncation=True, padding="max_length")["input_ids"] == expected.tolist()
    assert (theirs.bos_token_id, theirs.convert_tokens_to_ids("[ENC]"), len(theirs)) == (
        ours.dec,
        ours.enc,
        ours.vocab_size,
    )
    assert ours.decode(expected[2:3]) == ["two hearts and a star"]


def test_a_folder_with_a_vocabulary_alone_is_enough(tmp_path):
    ours = Tokenizer.train(TEXTS, 200)
    ours.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    again = Tokenizer.from_folder(tmp_path)
    assert again.backend.get_vocab() == ours.backend.get_vocab()


def test_training_gives_the_same_vocabulary_in_every_process():
    train = f"Tokenizer.train({TEXTS!r}, 80)"
    script = f"from blip.data.tokenizer import Tokenizer; print(sorted({train}.backend.get_vocab().items()))"
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert elsewhere == f"{sorted(Tokenizer.train(TEXTS, 80).backend.get_vocab().items())}\n"


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a vocab\.txt nor a folder"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n")
    with pytest.raises(ConfigError, match=r"lacks \[SEP\]"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ConfigError, match="vocabulary of 10 is too small"):
        Tokenizer.train(TEXTS, 10)


def test_a_trained_vocabulary_keeps_marks_that_are_vowels(tmp_path):
    texts = ["สุนัขวิ่ง", "कुत्ता दौड़ रहा है", "naïve café", "straße"]
    ours = Tokenizer.train(texts, 300)
    ours.save(tmp_path)
    ids = ours.encode(texts, 60).ids
    assert ours.decode(ids) == texts
    assert BertTokenizerFast.from_pretrained(tmp_path)(texts, padding=True)["input_ids"] == ids.tolist()
    (tmp_path / "tokenizer.json").unlink()
    assert Tokenizer.from_folder(tmp_path).encode(texts, 60).ids.equal(ids)


def test_berts_own_vocabulary_has_no_accents(words):
    assert words.encode(["a réd dog"], 9).ids.equal(words.encode(["a red dog"], 9).ids)


def test_a_large_vocabulary_knows_the_letters_of_chinese():
    letters = [chr(0x4E00 + i) for i in range(3000)]
    texts = ["".join(letters[i : i + 30]) for i in range(0, 3000, 30)]
    assert Tokenizer.train(texts, 30524).unknown(texts) == 0
    assert Tokenizer.train(texts, 4000).unknown(texts) == pytest.approx(2 / 3)


def test_the_share_of_unknown_words_is_counted(words):
    assert words.unknown(["a red dog", "a dog"]) == 0
    assert words.unknown(["a 狗", "[SEP]"]) == pytest.approx(1 / 3)
    assert words.unknown([]) == 0
    assert words.encode(["a red dog and a cat"], 4).ids.shape == (1, 4), "counting leaves nothing behind"


def test_broken_files_are_one_line(tmp_path):
    Tokenizer.train(TEXTS, 80).save(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        path = tmp_path / name
        if name == "vocab.txt":
            (tmp_path / "tokenizer.json").unlink()
        whole = path.read_bytes()
        for trial in range(120):
            data = bytearray(whole if trial % 3 else whole[: rng.integers(len(whole))])
            for place in rng.integers(0, max(len(data), 1), 3):
                data[place : place + 1] = bytes([rng.integers(256)])
            path.write_bytes(data)
            try:
                Tokenizer.from_folder(tmp_path).encode(TEXTS, 12)
            except ConfigError as error:
                said = str(error)
                assert str(tmp_path) in said and "\n" not in said, said  # noqa: PT018
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n\xff\xfe\n", "is not UTF-8"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "1 tokens more than once, among them 'a'"),
        (b"", "lacks"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    Tokenizer.train(TEXTS, 80).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["red"] = 500
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="not numbered from 0 on without gaps"):
        Tokenizer.from_folder(tmp_path)
