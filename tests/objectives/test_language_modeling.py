"""LM: which tokens are predicted, and the loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from blip.objectives.language_modeling import caption_loss, log_probabilities, next_token_targets, token_losses

IDS = torch.tensor([[9, 5, 6, 7, 8, 2], [9, 5, 6, 2, 0, 0]])
MASK = IDS != 0


def test_targets_are_the_next_tokens_without_padding():
    assert next_token_targets(IDS, MASK).tolist() == [[5, 6, 7, 8, 2], [5, 6, 2, -100, -100]]


def test_the_prompt_is_not_a_target():
    # [DEC] and two words of prompt: the first target is the first token after them
    assert next_token_targets(IDS, MASK, prompt=3).tolist() == [[-100, -100, 7, 8, 2], [-100, -100, 2, -100, -100]]


def test_targets_leave_the_callers_ids_unchanged():
    ids = IDS.clone()
    next_token_targets(ids, MASK, prompt=4)
    assert ids.equal(IDS)


def test_the_smoothed_loss_is_the_mean_over_predicted_tokens():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 11), next_token_targets(IDS, MASK, prompt=3)
    log_p = logits.log_softmax(-1)
    by_hand = [
        0.9 * -log_p[b, i, t] + 0.1 * -log_p[b, i].mean() for b, i, t in ((0, 2, 7), (0, 3, 8), (0, 4, 2), (1, 2, 2))
    ]
    assert float(caption_loss(logits, targets, 0.1)) == pytest.approx(sum(map(float, by_hand)) / 4, rel=1e-6)
    reference = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)
    assert float(caption_loss(logits, targets, 0.1)) == pytest.approx(float(reference))


def test_another_count_of_tokens_replaces_the_batchs_own():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 11), next_token_targets(IDS, MASK)
    assert float(caption_loss(logits, targets, 0.1, torch.tensor(16.0))) == pytest.approx(
        float(caption_loss(logits, targets, 0.1)) / 2
    )


def test_a_text_without_targets_costs_nothing():
    assert float(caption_loss(torch.randn(1, 5, 11), torch.full((1, 5), -100), 0.1)) == 0


def test_log_probabilities_are_of_whole_texts_without_smoothing():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    assert log_probabilities(logits, torch.tensor([[0, 1, -100]])).tolist() == pytest.approx([math.log(0.4)])


@pytest.mark.parametrize("sure", [0.8, 0.9, 0.99])
def test_smoothing_leaves_a_floor_of_1_3577(sure: float):
    """The loss is least where the prediction equals the smoothed target."""
    vocabulary = 30524
    rest = torch.full((1, 1, vocabulary), (1 - sure) / vocabulary)
    rest[0, 0, 3] += sure
    loss = float(token_losses(rest.log(), torch.tensor([[3]]), 0.1))
    assert loss == pytest.approx(1.3577, abs=1e-4) if sure == 0.9 else loss > 1.37


def test_an_untrained_writer_pays_the_log_of_the_vocabulary():
    assert float(caption_loss(torch.zeros(2, 5, 30524), next_token_targets(IDS, MASK), 0.1)) == pytest.approx(
        10.326, abs=1e-3
    )
