from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import timm
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from blip.data.transforms import MEAN, STD
from blip.datasets import shapes
from blip.miniatures.documents import Document, Turn, documents
from blip.miniatures.language import IGNORED, MiniatureLanguageConfig, opt_pair, t5_pair, train_opt, train_t5
from blip.miniatures.vision import FACTS, MiniatureVisionConfig, facts_of, train_vision
from blip.miniatures.words import NEWLINE, train_words

RED_CIRCLE = shapes.Scene(
    ground="grey", objects=[shapes.Thing(shape="circle", colour="red", size="small", place="left")]
)
LANGUAGE = MiniatureLanguageConfig(width=32, depth=1, heads=2, steps=60, batch=16, lr=1e-2)
CAPTION = Document("grey small red circle left", (Turn("", "a small red circle on the left"),))
QUESTIONS = Document(
    "a red circle on grey",
    (Turn("Question: how big is it? Answer:", "small"), Turn("Question: where is it? Answer:", "left")),
)


@pytest.fixture(scope="module")
def words():
    return train_words((f"{d.context} {d.continuation}{NEWLINE}" for d in islice(documents(1, 0.3), 500)), 450)


def test_documents_are_true_of_one_scene_and_depend_on_the_seed_alone():
    found = list(islice(documents(3, 0.0), 400))
    assert found == list(islice(documents(3, 0.0), 400))
    assert found != list(islice(documents(4, 0.0), 400))
    assert {document.is_dialogue for document in found} == {True, False}
    assert 0.4 < sum(document.is_dialogue for document in found) / len(found) < 0.6
    for context, ((prompt, reply), *_) in (document for document in found if not document.is_dialogue):
        assert prompt == ""
        said = set(reply.split()) & {*shapes.ANSWERS["colour"], *shapes.ANSWERS["shape"]}
        assert said <= set(context.split()), (context, reply)


def test_words_come_back_as_they_were(words):
    text = " a huge green ring above a tiny white square\n"
    assert words.decode(words.encode(text).ids) == text
    assert len(words.encode(NEWLINE).ids) == 1
    assert len(words.encode(text).ids) < 16


def test_the_decoder_only_model_predicts_replies_and_the_newline_alone(words):
    read, targets = opt_pair(QUESTIONS, words, Random(1))
    assert len(read) == len(targets)
    assert words.decode([token for token in targets if token != IGNORED]) == " small left\n"
    assert all(target in (IGNORED, token) for token, target in zip(read, targets, strict=True))
    read, targets = opt_pair(CAPTION, words, Random(1))
    assert words.decode([token for token in targets if token != IGNORED]) == " a small red circle on the left\n"
    assert (
        words.decode(read, skip_special_tokens=True) == " grey small red circle left a small red circle on the left\n"
    )


def test_the_encoder_reads_what_comes_before_the_last_reply(words):
    found = [t5_pair(QUESTIONS, words, Random(seed)) for seed in range(20)]
    assert {words.decode(targets) for _, targets in found} == {" left"}
    assert {words.decode(read) for read, _ in found} == {
        " a red circle on grey Question: how big is it? Answer: small Question: where is it? Answer:",
        " a red circle on grey Question: where is it? Answer:",
    }
    cuts = [t5_pair(CAPTION, words, Random(seed)) for seed in range(40)]
    whole = " grey small red circle left a small red circle on the left"
    assert {words.decode(read) + words.decode(targets) for read, targets in cuts} == {whole}
    assert len({len(targets) for _, targets in cuts}) == 7


def test_the_language_models_learn_and_are_read_as_any_others(words, tmp_path):
    for train, auto in ((train_opt, AutoModelForCausalLM), (train_t5, AutoModelForSeq2SeqLM)):
        out = tmp_path / train.__name__
        curve = train(LANGUAGE, words, 0, 0.1, out)
        assert curve[-1][1] < 0.75 * curve[0][1], train.__name__
        model, tokenizer = auto.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        ids = tokenizer("a red circle\n").input_ids
        end, pad = tokenizer.convert_tokens_to_ids(["</s>", "<pad>"])
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (pad, end)
        assert ids.count(end) == 1
        assert ids.index(end) == (0 if train is train_opt else len(ids) - 1)
        assert model.get_input_embeddings().num_embeddings == len(tokenizer) == words.get_vocab_size()
        assert model.config.pad_token_id == pad


def test_what_a_seed_makes_is_made_again(words, tmp_path):
    cfg = LANGUAGE.model_copy(update={"steps": 2})
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train_opt(cfg, words, seed, 0.1, tmp_path / name)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_the_facts_of_a_scene_name_what_is_at_each_place():
    facts = facts_of(RED_CIRCLE)
    assert len(facts) == len(FACTS) == 16
    assert all(0 <= fact < count for fact, count in zip(facts, FACTS, strict=True))
    ground, left, others = facts[0], facts[1:4], facts[4:]
    assert ground == 0
    assert left == [1, 1, 1]
    assert others == [0] * 12


def test_the_image_encoder_learns_and_is_read_as_any_of_timm(tmp_path: Path):
    cfg = MiniatureVisionConfig(size=16, patch=8, width=16, depth=2, heads=2, images=64, steps=40, batch=32, lr=1e-2)
    curve = train_vision(cfg, 0, 0.1, tmp_path)
    assert curve[-1][1] < 0.8 * curve[0][1]
    encoder: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    assert encoder.forward_features(torch.zeros(1, 3, 16, 16)).shape == (1, 5, 16)
    assert encoder.pretrained_cfg["mean"] == pytest.approx(MEAN)
    assert encoder.pretrained_cfg["std"] == pytest.approx(STD)
