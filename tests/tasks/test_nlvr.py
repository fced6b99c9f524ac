"""A statement about two images."""

from collections import Counter

import numpy as np
import pytest
import torch

from blip.batch import Batch, Example
from blip.shards.sample import BadSample, Sample
from blip.tasks.nlvr import NLVR, NLVRConfig, exchange_sides


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


def view(image: bytes) -> torch.Tensor:
    return torch.full((3, 2, 2), image[0], dtype=torch.uint8)


def pair(text: str = "The left dog. RIGHT is bright", **meta) -> Sample:
    return Sample("a", [b"\x01", b"\x02"], [text], {"label": 1, "identifier": "dev-0-0", **meta})


def test_training_exchanges_images_and_sides_half_of_the_time_and_evaluation_never(make):
    task = make(NLVRConfig())
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(400):
        example = task.prepare(pair(), view, rng)
        found[tuple(example.image[:, 0, 0, 0].tolist()), example.texts[0]] += 1
        whole = task.whole(pair(), view)
        assert (whole.image[:, 0, 0, 0].tolist(), whole.texts) == ([1, 2], pair().texts)
    assert set(found) == {((1, 2), pair().texts[0]), ((2, 1), "The right dog. LEFT is bright")}
    assert 160 < found[(1, 2), pair().texts[0]] < 240
    never = make(NLVRConfig(swap=0.0))
    assert all(never.prepare(pair(), view, rng).image[0, 0, 0, 0] == 1 for _ in range(50))


def test_sides_are_exchanged_as_words_alone():
    assert exchange_sides("Left of the rightmost, leftovers right.") == "Right of the rightmost, leftovers left."


@pytest.mark.parametrize("bad", [{"label": None}, {"label": 2}])
def test_a_pair_without_a_label_is_bad(make, bad: dict):
    with pytest.raises(BadSample, match="label is neither"):
        make(NLVRConfig()).whole(pair(**bad), view)


def test_the_table_for_the_data_sets_evaluation(make):
    task = make(NLVRConfig()).eval()
    batch = task.collate([task.whole(pair(), lambda _: torch.zeros(3, 16, 16, dtype=torch.uint8))])
    (prediction,) = task.predict(batch)
    assert task.submission([prediction]) == {"nlvr2_predictions.csv": f"dev-0-0,{bool(prediction.answer)}\n"}
