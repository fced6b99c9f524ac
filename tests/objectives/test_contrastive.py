"""ITC and its queue against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from blip.objectives.contrastive import FeatureQueue, contrastive_loss, soft_cross_entropy, soft_targets

NOT_A_KEY = -math.inf


def test_itc_of_two_pairs_and_a_queue_of_four_equals_the_sum_by_hand():
    t = 0.5
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    queue_text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    queue_image = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    i2t, t2i = image @ torch.cat([text, queue_text]).T / t, text @ torch.cat([image, queue_image]).T / t
    positive = torch.eye(2, 6, dtype=torch.bool)

    def row(logits: list[float], target: int) -> float:
        return math.log(sum(math.exp(x) for x in logits)) - logits[target]

    by_hand_i2t = (row([1.2, 0.0, 2.0, 0.0, -2.0, 0.0], 0) + row([1.6, 2.0, 0.0, 2.0, 0.0, -2.0], 1)) / 2
    by_hand_t2i = (row([1.2, 1.6, 1.92, 2.0, 1.6, 1.2], 0) + row([0.0, 2.0, 1.2, 1.6, 2.0, 0.0], 1)) / 2
    assert float(contrastive_loss(i2t, t2i, i2t, t2i, positive, 0.0)) == pytest.approx(
        (by_hand_i2t + by_hand_t2i) / 2, abs=1e-6
    )


def test_the_teachers_opinion_enters_the_targets_by_alpha():
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(4), 0.0]])
    targets = soft_targets(teacher, torch.tensor([[True, False]]), 0.5)
    assert targets.tolist()[0] == pytest.approx([0.9, 0.1])
    # the student says 1/4 and 3/4
    assert float(soft_cross_entropy(student, targets)) == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


def test_two_texts_of_an_image_share_the_target():
    targets = soft_targets(torch.zeros(1, 4), torch.tensor([[True, False, True, False]]), 0.0)
    assert targets.tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_an_excluded_key_changes_neither_loss_nor_gradient():
    few = torch.tensor([[1.0, 2.0]], requires_grad=True)
    many = torch.tensor([[1.0, 2.0, NOT_A_KEY]], requires_grad=True)
    losses = []
    for logits in (few, many):
        positive = torch.tensor([[True, False, False]])[:, : logits.shape[1]]
        losses.append(soft_cross_entropy(logits, soft_targets(logits.detach(), positive, 0.4)))
        losses[-1].backward()
    assert few.grad is not None
    assert many.grad is not None
    assert losses[0].item() == pytest.approx(losses[1].item())
    assert many.grad[:, :2].tolist() == few.grad.tolist()
    assert many.grad[0, 2] == 0


def test_random_features_start_near_the_log_of_the_number_of_keys():
    generator = torch.Generator().manual_seed(0)
    image, text, keys = (F.normalize(torch.randn(n, 256, generator=generator), dim=1) for n in (16, 16, 1000))
    i2t, t2i = image @ keys.T, text @ keys.T
    loss = contrastive_loss(i2t, t2i, i2t, t2i, torch.eye(16, 1000, dtype=torch.bool), 0.4)
    assert float(loss) == pytest.approx(math.log(1000), abs=0.05)


def test_a_queue_starts_empty_wraps_around_and_keeps_the_latest():
    queue = FeatureQueue(5, 2)
    assert queue.contents()[3].tolist() == [False] * 5

    def write(*numbers: int) -> None:
        features = torch.tensor(numbers).float()[:, None].repeat(1, 2)
        queue.enqueue(features, -features, torch.tensor(numbers))

    write(1, 2, 3)
    image, text, ids, written = queue.contents()
    assert written.tolist() == [True, True, True, False, False]
    assert ids[written].tolist() == [1, 2, 3]
    write(4, 5, 6, 7)
    image, text, ids, written = queue.contents()
    assert ids.tolist() == [6, 7, 3, 4, 5]
    assert image[:, 0].tolist() == [6, 7, 3, 4, 5]
    assert text[:, 0].tolist() == [-6, -7, -3, -4, -5]
    assert written.all()
    assert queue.pointer.item() == 2
    write(*range(8, 16))
    assert sorted(queue.ids.tolist()) == [11, 12, 13, 14, 15]


def test_contents_do_not_change_under_a_later_write():
    queue = FeatureQueue(2, 1)
    image, *_ = queue.contents()
    queue.enqueue(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1]))
    assert image.tolist() == [[0.0], [0.0]]


def test_a_queue_filled_at_random_holds_unit_vectors():
    queue = FeatureQueue(8, 4)
    queue.fill_at_random()
    image, text, _, written = queue.contents()
    assert written.all()
    for features in (image, text):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(8))
