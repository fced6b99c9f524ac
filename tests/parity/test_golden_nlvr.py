"""NLVR2: loss and logits equal the reference's."""

import torch
from golden_files import Golden, assert_close, batch_of

from blip.models.weights.load import load_weights
from blip.tasks.nlvr import NLVR, NLVRConfig


def test_loss_and_logits_are_the_references(golden: Golden):
    io = golden.io("nlvr")
    model = NLVRConfig().build_model(golden.med("med_config_nlvr.json"))
    load_weights(model, golden.weights("nlvr"))
    task = NLVRConfig().build_task(model, golden.tokenizer).eval()
    assert isinstance(task, NLVR)
    pairs = torch.stack(io["image"].chunk(2), 1)
    text = golden.tokenizer.encode(golden.meta["nlvr"]["captions"], task.cfg.text.tokens)
    batch = batch_of(pairs, text, labels=io["targets"])
    assert_close(task.logits(batch), io["logits"])
    assert_close(task(batch)["nlvr"], io["loss"])
