"""Ingestion warns of texts with words unknown to the tokenizer."""

import logging
from pathlib import Path

import pytest
from tiny_models import picture

from blip.data.tokenizer import Tokenizer
from blip.runs.ingest import unknown_share
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards

ENGLISH = ["a red dog", "a dog and a cat"]
CHINESE = ["一只红色的狗", "a dog 一只狗"]


def manifest(texts: list[str], folder: Path) -> Manifest:
    return write_shards([Sample(str(i), [picture(i)], [text]) for i, text in enumerate(texts)], str(folder), "web")


def test_a_share_of_unknown_words_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    words = Tokenizer.from_folder("tests/golden/vocab.txt")
    with caplog.at_level(logging.WARNING):
        assert unknown_share(words, manifest(ENGLISH, tmp_path / "english")) == 0
        assert not caplog.records
        share = unknown_share(words, manifest(ENGLISH, tmp_path / "gold"), manifest(CHINESE, tmp_path / "chinese"))
    assert share == pytest.approx(9 / 19)
    [record] = caplog.records
    assert "47% of the tokens of 4 texts are [UNK]" in record.getMessage()
