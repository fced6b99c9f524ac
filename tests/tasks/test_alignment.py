"""ITC and ITM in a task: EMA updates, the queue and negatives."""

import math

import pytest
import torch

from blip.batch import Tokens
from blip.data.transforms import normalise
from blip.tasks.alignment import Alignment, AlignmentConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig

RETRIEVAL = RetrievalConfig().alignment


def pretraining(**changes) -> PretrainingConfig:
    return PretrainingConfig(alignment=AlignmentConfig(**{"queue": 8, "momentum": 0.9, **changes}))


def test_alpha_rises_over_two_epochs_in_pretraining(make):
    task = make(pretraining())
    seen = []
    for step in (0, 5, 10, 20, 30):
        task.on_step(step, steps_per_epoch=10)
        seen.append(task.alignment.alpha)
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])


def test_alpha_rises_over_one_epoch_in_retrieval(make):
    task = make(RetrievalConfig(alignment=RETRIEVAL.model_copy(update={"queue": 8})))
    seen = []
    for step in (0, 5, 10, 20):
        task.on_step(step, steps_per_epoch=10)
        seen.append(task.alignment.alpha)
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(("temperature", "used"), [(1e-5, 0.001), (0.07, 0.07), (3.0, 0.5)])
def test_the_temperature_goes_on_from_within_its_bounds_and_keeps_its_gradient(
    make, batch_of, temperature: float, used: float
):
    task = make(pretraining(temperature=temperature)).train()
    assert task.on_step(0, 1) == [task.alignment.temperature]
    assert task.alignment.temperature.item() == pytest.approx(used)
    task(batch_of(task))["itc"].backward()
    assert task.alignment.temperature.grad.item() != 0


def test_a_temperature_that_is_held_is_none_of_the_optimizers(make):
    assert make(pretraining(learn_temperature=False)).on_step(0, 1) == []


def test_the_teacher_moves_once_a_step_and_not_in_evaluation(make, batch_of):
    task = make(pretraining())
    with torch.no_grad():
        task.model.text_proj.weight.add_(1.0)
    teacher = task.alignment.teacher["text_proj"].weight
    before = teacher.clone()
    batch = batch_of(task)
    task.train()
    task.on_step(0, 1)
    after = teacher.clone()
    torch.testing.assert_close(after, before + 0.1)
    for _ in range(3):
        task(batch)
    task.eval()(batch)
    assert teacher.equal(after)


def test_the_teacher_starts_as_the_student_reads_alone_and_has_no_cross_attention(make, batch_of):
    task = make(pretraining())
    batch = batch_of(task)
    image, text = task.alignment.momentum_features(torch.zeros(4, 3, 16, 16), batch.text)
    torch.testing.assert_close(text, task.model.text_feature(task.model.encode_text(batch.text)))
    assert not any("cross_attention" in name for name, _ in task.alignment.teacher.named_parameters())
    assert not any(p.requires_grad for p in task.alignment.teacher.parameters())
    assert image.shape == (4, 8)


def test_the_teacher_stays_in_evaluation_mode_unless_told_otherwise(make):
    assert not make(pretraining()).train().alignment.teacher.training
    reference = make(pretraining(teacher_mode="train"))
    assert reference.train().alignment.teacher.training
    assert not reference.eval().alignment.teacher.training


def test_a_batch_enters_the_queue_after_its_loss(make, batch_of):
    task = make(pretraining()).train()
    batch = batch_of(task)
    first = task(batch)["itc"].item()
    task.after_step()
    assert task.alignment.queue.filled.item() == 4
    torch.testing.assert_close(task.alignment.queue.ids[:4], batch.image_ids)
    again = make(pretraining()).train()
    assert again(batch)["itc"].item() == pytest.approx(first), "an empty queue adds nothing"


def test_evaluation_leaves_the_queue_as_it_is(make, batch_of):
    task = make(pretraining()).eval()
    task(batch_of(task))
    task.after_step()
    assert task.alignment.queue.filled.item() == 0


def test_itc_with_the_queue_is_the_sum_by_hand(make, batch_of):
    task = make(pretraining(temperature=0.5)).train()
    batch = batch_of(task)
    task(batch)
    task.after_step()
    other = batch_of(task)
    other.image_ids = other.image_ids + 1  # four other images
    model, alignment = task.model, task.alignment
    images = normalise(other.images)
    image, text = model.image_feature(model.encode_image(images)), model.text_feature(model.encode_text(other.text))
    keys_text = torch.cat([text, alignment.queue.text[:4]])  # the teacher is still the student
    keys_image = torch.cat([image, alignment.queue.image[:4]])
    target = torch.arange(4)
    expected = (
        torch.nn.functional.cross_entropy(image @ keys_text.T / 0.5, target)
        + torch.nn.functional.cross_entropy(text @ keys_image.T / 0.5, target)
    ) / 2
    assert task(other)["itc"].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("same_image", "right", "counts"),
    [
        ("masked", [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 0, 1, 0], [0, 1, 1, 0]]),
        ("positive", [[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 0]]),
        ("negative", [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 0]]),
    ],
)
def test_another_text_of_the_same_image_is(make, same_image: str, right: list[list[int]], counts: list[list[int]]):
    alignment = make(pretraining(same_image=same_image, queue=2)).alignment
    positive, excluded = alignment.relations(
        torch.tensor([5, 5]), torch.tensor([5, 5, 6, -100]), torch.tensor([True, False])
    )
    assert positive.int().tolist() == right
    assert (~excluded).int().tolist() == counts


def test_matching_stands_in_the_order_own_wrong_image_wrong_text(make, batch_of):
    task = make(pretraining(most_likely_negatives=True))
    batch, seen = batch_of(task), {}
    ids, text = batch.image_ids, batch.text

    class Student:
        def match(self, texts: Tokens, cross: list) -> torch.Tensor:
            seen["texts"], seen["images"] = texts.ids, cross[0][0]
            return torch.log(torch.tensor([2 / 3, 1 / 3])).expand(12, 2)

    images = torch.arange(4.0)
    cross = [(images, images)]
    similarity = torch.eye(4) * 9 + torch.eye(4).roll(1, 1)  # the next one is the hardest
    loss = task.alignment.itm_loss(Student(), text, images, cross, similarity, similarity, ids)
    assert seen["images"].tolist() == [0, 1, 2, 3, 1, 2, 3, 0, 0, 1, 2, 3]
    assert seen["texts"].equal(torch.cat([text.ids, text.ids, text.ids.roll(-1, 0)]))
    assert loss.item() == pytest.approx(0.6365, abs=1e-4)


def test_a_batch_of_one_trains_without_negatives(make, batch_of):
    task = make(pretraining()).train()
    losses = task(batch_of(task, "a"))
    torch.stack(list(losses.values())).sum().backward()
    assert all(math.isfinite(loss.item()) for loss in losses.values())


def test_a_batch_of_one_images_texts_trains_without_negatives(make, batch_of):
    for cfg in (pretraining(), RetrievalConfig(alignment=RETRIEVAL.model_copy(update={"queue": 8}))):
        task = make(cfg).train()
        losses = task(batch_of(task, "aaaa"))
        torch.stack(list(losses.values())).sum().backward()
        assert all(math.isfinite(loss.item()) for loss in losses.values())


def test_a_task_has_its_losses(make, batch_of):
    task = make(pretraining())
    assert isinstance(task, Pretraining)
    assert set(task(batch_of(task))) == {"itc", "itm", "lm"}
    task = make(RetrievalConfig(alignment=RETRIEVAL.model_copy(update={"queue": 8})))
    assert isinstance(task, Retrieval)
    assert isinstance(task.alignment, Alignment)
    assert set(task(batch_of(task))) == {"itc", "itm"}
