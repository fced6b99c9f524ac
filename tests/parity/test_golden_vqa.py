"""VQA: the weighted loss, the ranked and the generated answers equal the reference's."""

from typing import Any

import torch
from golden_files import Golden, assert_close, batch_of, before_normalisation

from blip.models.weights.load import load_weights
from blip.tasks.vqa import VQA, VQAConfig


def task(golden: Golden, **changes: Any) -> VQA:
    sizes = golden.med()
    cfg = VQAConfig(answer_tokens=sizes.text.positions, **changes)  # the reference cuts no answer
    model = cfg.build_model(sizes)
    load_weights(model, golden.weights("vqa"))
    vqa = cfg.build_task(model, golden.tokenizer)
    assert isinstance(vqa, VQA)
    return vqa.eval()


def test_the_loss_is_the_references(golden: Golden):
    vqa, io, meta = task(golden), golden.io("vqa"), golden.meta["vqa"]
    owner = torch.arange(len(meta["n"])).repeat_interleave(torch.tensor(meta["n"]))
    question = golden.tokenizer.encode(meta["questions"], vqa.cfg.question.tokens)
    answers = vqa.encode_answers(meta["answers"])
    batch = batch_of(io["image"], question, answers=answers, owner=owner, weights=io["weights"])
    assert_close(vqa(batch)["vqa"], io["loss"])


def test_ranked_answers_are_the_references(golden: Golden):
    io, meta = golden.io("vqa"), golden.meta["vqa"]
    vqa = task(golden, rank_smoothing=0.1, rank_candidates=meta["k_test"])
    question = golden.tokenizer.encode(meta["questions"], vqa.cfg.question.tokens)
    best = vqa.rank(before_normalisation(io["image"]), question, vqa.encode_answers(meta["answer_list"]))
    assert best.tolist() == io["rank"].tolist()
    assert [meta["answer_list"][i] for i in best.tolist()] == meta["rank"]


def test_written_answers_are_the_references(golden: Golden):
    meta = golden.meta["vqa"]
    vqa = task(golden, vqa_full_mask=True)
    question = golden.tokenizer.encode(meta["questions"], vqa.cfg.question.tokens)
    assert vqa.generate(before_normalisation(golden.io("vqa")["image"]), question) == meta["generate"]
