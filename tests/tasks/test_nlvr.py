"""A statement about two images."""

import pytest
import torch

from blip.batch import Batch, Example
from blip.tasks.nlvr import NLVR, NLVRConfig


def batch_of(task: NLVR) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return task.collate([Example(str(i), images[i], ["a red circle"], {"label": i % 2 == 0}) for i in range(4)])


def test_it_learns_by_heart_which_pairs_are_described(make):
    task = make(NLVRConfig())
    batch = batch_of(task)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        task(batch)["nlvr"].backward()
        optimizer.step()
    predictions = task.eval().predict(batch)
    assert [p.answer for p in predictions] == [1, 0, 1, 0]
    assert dict(task.score(predictions)) == {"accuracy": pytest.approx(100.0)}


def test_left_and_right_are_not_alike(make):
    task = make(NLVRConfig()).eval()
    batch = batch_of(task)
    logits = task.logits(batch)
    batch.images = batch.images.flip(1)
    assert not torch.allclose(task.logits(batch), logits)
