"""A tokenizer is read from a store, without a network."""

from pathlib import Path

import pytest

from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer
from blip.runs.ingest import read_tokenizer
from blip.storage import MissingKeyError, open_store

VOCABULARY = Path("tests/golden/vocab.txt")


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """The URI of an empty store."""
    return f"file://{tmp_path}/store" if request.param == "folder" else f"{request.getfixturevalue('s3')}/words"


def test_a_vocabulary_is_read_from_a_store(uri):
    open_store(uri).put_file("vocab.txt", VOCABULARY)
    ours = Tokenizer.from_folder(VOCABULARY).backend.get_vocab()
    assert read_tokenizer(f"{uri}/vocab.txt").backend.get_vocab() == ours
    assert read_tokenizer(uri).backend.get_vocab() == ours


def test_a_folder_of_a_tokenizer_is_read_from_a_store_with_its_settings(uri, tmp_path):
    words = Tokenizer.train(["un café noir", "a dog"] * 20, vocab_size=120)
    words.save(tmp_path / "words")
    for file in (tmp_path / "words").iterdir():
        open_store(uri).put_file(file.name, file)
    found = read_tokenizer(uri)
    texts = ["un café"]
    assert found.encode(texts, 10).ids.tolist() == words.encode(texts, 10).ids.tolist()


def test_a_store_without_a_tokenizer_is_named(uri):
    store = open_store(uri)
    store.put("notes.md", b"nothing")
    with pytest.raises(ConfigError, match=f"tokenizer '{uri}': {store.uri} holds no tokenizer.json or vocab.txt"):
        read_tokenizer(uri)
    with pytest.raises(MissingKeyError, match=f"{uri}/vocab.txt does not exist"):
        read_tokenizer(f"{uri}/vocab.txt")
