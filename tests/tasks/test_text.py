"""Losses are averaged over the tokens of a whole optimizer step."""

import pytest
import torch

from blip.batch import Batch, Example
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.pretraining import PretrainingConfig

TEXTS = ["a red circle", "a blue square and a green ring and a yellow cross", "a ring", "a yellow cross"]


def batches(task, size: int) -> list[Batch]:
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).view(3, 16, 16)
    examples = [Example(str(i), image.roll(i), [text]) for i, text in enumerate(TEXTS)]
    return [task.collate(examples[i : i + size]) for i in range(0, len(examples), size)]


@pytest.mark.parametrize(
    "cfg", [CaptioningConfig(smoothing=0.0), PretrainingConfig(smoothing=0.0)], ids=["captioning", "pretraining"]
)
def test_lm_is_the_mean_over_all_tokens_of_a_step_however_it_is_cut(make, cfg):
    task = make(cfg).requires_grad_(False)
    found = []
    for size in (4, 2, 1):
        cut = batches(task, size)
        task.look_ahead(cut)
        found.append(sum(float(task(batch)["lm"]) for batch in cut) / len(cut))
        task.after_step()
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-5)
    (whole,) = batches(task, 4)
    assert float(task(whole)["lm"]) == pytest.approx(found[0], rel=1e-5), "a batch alone is its own step"


def test_as_in_the_reference_each_batch_has_its_own_mean(make):
    task = make(CaptioningConfig(smoothing=0.0, lm_reduction="rank")).requires_grad_(False)
    cut = batches(task, 2)
    task.look_ahead(cut)
    own = [float(task(batch)["lm"]) for batch in cut]
    task.look_ahead(cut[:1])
    assert float(task(cut[0])["lm"]) == own[0]
