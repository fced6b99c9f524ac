import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip.metrics import retrieval
from blip.metrics.retrieval import ranks, recall_at_k, recalls

GOLDEN = Path(os.environ.get("BLIP_GOLDEN", "tests/golden"))

# Two images; texts 0 and 1 belong to the first, text 2 to the second.
OWNER = torch.tensor([0, 0, 1])
IMAGE_SCORES = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]])
TEXT_SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.4, 0.6]])


def golden() -> tuple[dict[str, torch.Tensor], dict]:
    return load_file(GOLDEN / "misc.io.safetensors"), json.loads((GOLDEN / "misc.json").read_text())


def owners(values: dict) -> torch.Tensor:
    return torch.tensor([values["txt2img"][str(i)] for i in range(len(values["txt2img"]))])


@pytest.mark.parametrize("chunk", [512, 3])
def test_recalls_equal_the_reference(chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    tensors, values = golden()
    ours = recalls(tensors["scores_i2t"], tensors["scores_t2i"], owners(values))
    for direction, theirs in (("tr", "txt"), ("ir", "img")):
        for k in (1, 5, 10):
            assert ours[f"{direction}{k}"] == pytest.approx(values["retrieval"][f"{theirs}_r{k}"])
    assert ours["mean"] == pytest.approx(values["retrieval"]["r_mean"])


def test_recalls_by_hand():
    # The first image finds text 1 first; the second has its text behind text 0. Texts 0 and 2 find their image, text 1
    # does not.
    scores = recalls(IMAGE_SCORES, TEXT_SCORES, OWNER)
    assert scores == pytest.approx(
        {"tr1": 50, "tr5": 100, "tr10": 100, "ir1": 200 / 3, "ir5": 100, "ir10": 100, "mean": 86.1111111}
    )


def test_ranks_count_the_best_own_candidate():
    own = torch.tensor([[True, True, False], [False, False, True]])
    assert ranks(IMAGE_SCORES, own).tolist() == [0, 1]
    assert recall_at_k(torch.tensor([0, 1, 4, 5]), 5) == 75


def test_a_model_that_scores_everything_alike_finds_nothing():
    scores = recalls(torch.zeros(20, 20), torch.zeros(20, 20), torch.arange(20))
    assert set(scores.values()) == {0.0}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"not \(2, 3\), \(2, 3\) and \(3,\)"):
        recalls(IMAGE_SCORES, TEXT_SCORES.T, OWNER)
    with pytest.raises(ValueError, match="1 of 6 are not a number"):
        recalls(
            IMAGE_SCORES.clone().index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan"))),
            TEXT_SCORES,
            OWNER,
        )
    with pytest.raises(ValueError, match="query 1 has no candidate of its own"):
        recalls(IMAGE_SCORES, TEXT_SCORES, torch.zeros(3, dtype=torch.long))
