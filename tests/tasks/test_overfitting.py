"""Every task overfits eight samples, which checks model, loss and prediction together."""

import pytest
import torch

from blip.batch import Example
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.vqa import VQAConfig

TEXTS = [
    f"{article} {colour} {shape}"
    for article, shape in (("a", "circle"), ("the", "cross"))
    for colour in ("red", "blue", "green", "yellow")
]
ALIGNMENT = AlignmentConfig(
    queue=8, temperature=0.1, learn_temperature=False, momentum=0.5, alpha=0.0, same_image="positive"
)


def examples(frames: int = 1, **meta) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, frames, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [
        Example(
            str(i),
            images[i] if frames > 1 else images[i, 0],
            [text],
            {name: values[i] for name, values in meta.items()},
        )
        for i, text in enumerate(TEXTS)
    ]


def learn(task, samples: list[Example], steps: int) -> dict[str, float]:
    """Trains on the samples alone and returns the last losses."""
    batch = task.collate(samples)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=5e-3)
    task.train()
    losses = {}
    for step in range(steps):
        task.on_step(step, 1)
        losses = task(batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        task.after_step()
    task.eval()
    return {name: loss.item() for name, loss in losses.items()}


def test_pretraining(make):
    task = make(PretrainingConfig(alignment=ALIGNMENT, smoothing=0.0))
    losses = learn(task, examples(), 200)
    assert losses["lm"] < 0.1
    assert losses["itm"] < 0.1
    assert losses["itc"] < 0.75  # each image is in the batch and in the queue: two right answers leave ln 2 = 0.69


def test_the_captioner_writes_each_caption(make):
    task = make(CaptioningConfig(prompt="", smoothing=0.0))
    learn(task, examples(), 200)
    assert [p.caption for p in task.predict(task.collate(examples()))] == TEXTS


def test_the_filter_finds_each_text_and_tells_it_from_the_others(make):
    task = make(RetrievalConfig(alignment=ALIGNMENT))
    learn(task, examples(), 200)
    batch = task.collate(examples())
    found = task.predict(batch)
    scores = dict(task.score(task.rerank(found)(batch, range(len(found)))))
    assert scores["tr1"] == scores["ir1"] == 100
    assert task.match(batch.images, TEXTS)[0].min() > 0.9
    assert task.match(batch.images, TEXTS[1:] + TEXTS[:1])[0].max() < 0.1


def test_vqa_answers_each_question(make):
    samples = examples(answers=[["yes"], ["no"]] * 4)
    task = make(VQAConfig(smoothing=0.0))
    learn(task, samples, 150)
    assert [p.answer for p in task.predict(task.collate(samples))] == ["yes", "no"] * 4


def test_nlvr_judges_each_statement(make):
    samples = examples(frames=2, label=[True, False, False, True] * 2)
    task = make(NLVRConfig())
    learn(task, samples, 150)
    assert dict(task.score(task.predict(task.collate(samples)))) == {"accuracy": pytest.approx(100)}
