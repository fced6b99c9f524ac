"""Pre-training and retrieval: two steps of SGD equal the reference's, with queues and momentum weights."""

import torch
from golden_files import Golden, assert_close, assert_close_after_a_step, batch_of
from torch import Tensor

from blip.batch import Batch
from blip.models.weights.load import load_weights
from blip.models.weights.names import official
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.text import TextLengths
from blip.tasks.training_state import load_training_state, to_official

LOSSES = {"itc": "ita", "itm": "itm", "lm": "lm"}
"""Our names of the losses, and the reference's names."""


def pretraining(golden: Golden) -> Pretraining:
    meta = golden.meta["pretrain"]
    alignment = AlignmentConfig(
        queue=meta["queue"],
        momentum=meta["momentum"],
        most_likely_negatives=True,
        same_image="negative",
        queue_init="random",
    )
    cfg = PretrainingConfig(alignment=alignment, text=TextLengths(words=30, tokens=meta["max_length"], pad="max"))
    return started(golden, "pretrain", cfg)


def retrieval(golden: Golden) -> Retrieval:
    meta = golden.meta["retrieval"]
    alignment = RetrievalConfig().alignment.model_copy(
        update={
            "queue": meta["queue"],
            "momentum": meta["momentum"],
            "most_likely_negatives": True,
            "queue_init": "random",
        }
    )
    cfg = RetrievalConfig(alignment=alignment, text=TextLengths(words=30, tokens=meta["max_length"], pad="max"))
    return started(golden, "retrieval", cfg)


def started(golden: Golden, name: str, cfg: PretrainingConfig | RetrievalConfig):
    """The task with the weights and the training state of its file, every tensor of which is used."""
    model = cfg.build_model(golden.med())
    report = load_weights(model, golden.weights(name), cfg.DIFFERENCES)
    task = cfg.build_task(model, golden.tokenizer)
    state = load_training_state(task.alignment, golden.weights(name))
    assert not report.missing
    assert not state.missing
    return task.train()


def batch(golden: Golden, task: Pretraining | Retrieval, name: str) -> Batch:
    io, meta = golden.io(name), golden.meta[name]
    captions = meta.get("captions", golden.meta["captions"])
    text = golden.tokenizer.encode(captions, task.cfg.text.tokens, task.cfg.text.pad)
    return batch_of(io["image"], text, io.get("idx"))


def by_official_name(task: Pretraining | Retrieval) -> dict[str, Tensor]:
    names = {key: p for name, p in task.model.named_parameters(remove_duplicate=False) for key in official(name)}
    return names | {"temp": task.alignment.temperature}


def train(golden: Golden, name: str, task: Pretraining | Retrieval) -> None:
    """Takes two steps and asserts the losses, the gradients and the final state."""
    io, meta = golden.io(name), golden.meta[name]
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=meta["lr"])
    for step, alpha in enumerate(meta["alpha"]):
        task.on_step(step, steps_per_epoch=1)
        task.alignment.alpha = alpha
        losses = task(batch(golden, task, name))
        for ours, theirs in LOSSES.items():
            if ours in losses:
                assert_close(losses[ours], io[f"step{step}.{theirs}"], f"step {step}, {ours}")
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        parameters = by_official_name(task)
        for key in [key for key in io if key.startswith(f"step{step}.grad.")]:
            gradient = parameters[key.removeprefix(f"step{step}.grad.")].grad
            assert gradient is not None
            assert_close_after_a_step(gradient, io[key], key)
        task.after_step()
        optimizer.step()
    after = to_official(task.alignment, task.model, image_ids=name == "retrieval") | by_official_name(task)
    for key in [key for key in io if key.startswith("after.")]:
        ours = after[key.removeprefix("after.")]
        if io[key].is_floating_point():
            assert_close_after_a_step(ours, io[key], key)
        else:
            assert ours.tolist() == io[key].tolist(), key


def test_pretraining_takes_the_references_steps(golden: Golden):
    train(golden, "pretrain", pretraining(golden))


def test_retrieval_takes_the_references_steps(golden: Golden):
    train(golden, "retrieval", retrieval(golden))


def test_exactly_the_references_parameters_are_tied(golden: Golden):
    parameters = list(pretraining(golden).model.named_parameters(remove_duplicate=False))
    encoder, decoder = (
        {official(name)[0].removeprefix(part): p for name, p in parameters if name.startswith(part)}
        for part in ("text_encoder.", "text_decoder.")
    )
    tied = {(mine, theirs) for mine, p in encoder.items() for theirs, q in decoder.items() if p is q}
    assert tied == {tuple(pair) for pair in golden.meta["pretrain"]["shared"]}
