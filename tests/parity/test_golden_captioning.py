"""The captioner's loss, features, logits and captions equal the reference's."""

import re

import pytest
import torch
from golden_files import Golden, assert_close, batch_of, before_normalisation

from blip.models.bert import KVCache
from blip.models.generation import Beam
from blip.models.weights.load import load_weights
from blip.tasks.captioning import Captioning, CaptioningConfig


@pytest.fixture
def captioner(golden: Golden) -> Captioning:
    cfg = CaptioningConfig(prompt=golden.meta["captioner"]["prompt"])
    model = cfg.build_model(golden.med())
    load_weights(model, golden.weights("captioner"))
    task = cfg.build_task(model, golden.tokenizer)
    assert isinstance(task, Captioning)
    return task.eval()


def test_the_loss_is_the_references(golden: Golden, captioner: Captioning):
    io = golden.io("captioner")
    text = golden.tokenizer.encode(golden.meta["captioner"]["captions"], captioner.cfg.text.tokens)
    assert_close(captioner(batch_of(io["image"], text))["lm"], io["loss"])


def test_image_features_and_logits_of_the_prompt_are_the_references(golden: Golden, captioner: Captioning):
    io = golden.io("captioner")
    tokens = captioner.model.encode_image(io["image"])
    assert_close(tokens, io["image_embeds"])
    prompt = captioner.prompt(len(tokens))
    assert prompt.tolist() == io["prompt_ids"].tolist()
    cross, cache = captioner.model.text_decoder.cross_keys_values(tokens), KVCache(prompt.shape[1])
    logits = [captioner.model.decode_step(word, cross, cache) for word in prompt.split(1, 1)]
    assert_close(torch.stack(logits, 1), io["prompt_logits"])


def beam_searches(golden: Golden) -> dict[str, int]:
    """Returns the recorded beam searches by name (`beam3`) with their number of beams."""
    return {name: int(found[1]) for name in golden.meta["captioner"] if (found := re.fullmatch(r"beam(\d+)", name))}


def test_captions_are_the_references(golden: Golden, captioner: Captioning):
    meta, images = golden.meta["captioner"], before_normalisation(golden.io("captioner")["image"])
    prompt = captioner.prompt(1)[0].tolist()
    assert beam_searches(golden)
    for name, beams in (beam_searches(golden) | {"greedy": 1}).items():
        texts = captioner.generate(
            images, Beam(beams=beams, min_length=meta["min_length"], max_length=meta["max_length"])
        )
        whole = golden.tokenizer.decode([prompt + ids for ids in texts.ids])
        # the reference cuts its prompt by letters, and so loses or keeps some where the first word joins the prompt's
        # last
        assert [text[len(meta["prompt"]) :] for text in whole] == meta[name], name
