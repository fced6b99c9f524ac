"""The parity tolerance: rounding passes, real differences fail."""

import pytest
import torch
from golden_files import assert_close, assert_close_after_a_step
from torch import Tensor


@pytest.fixture
def logits() -> Tensor:
    """Returns 2,256 logits of magnitudes up to 7."""
    logits = torch.randn(48, 47, generator=torch.Generator().manual_seed(0))
    return logits * 7 / logits.abs().max()


def moved(logits: Tensor, by: float, row: int = 3, column: int = 5) -> Tensor:
    """Returns the logits with one small one changed."""
    logits = logits.clone()
    logits[row, column] = 0.01 + by
    return logits


def test_rounding_of_a_small_logit_among_large_ones_passes(logits: Tensor):
    assert_close(moved(logits, 2e-5), moved(logits, 0))
    assert_close(logits * (1 + 5e-6), logits)


def test_a_sum_in_another_order_passes():
    a, b = (torch.randn(64, 768, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert_close(a @ b.T, torch.stack([a[:, i::8] @ b[:, i::8].T for i in range(8)]).sum(0))


@pytest.mark.parametrize("by", [1e-4, -1e-4, 1e-3, float("nan"), float("inf")])
def test_a_difference_of_one_element_fails(logits: Tensor, by: float):
    with pytest.raises(AssertionError, match="logits differs by"):
        assert_close(moved(logits, by), moved(logits, 0), "logits")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_size_of_the_numbers_does_not_matter(logits: Tensor, scale: float):
    assert_close(moved(logits, 2e-5) * scale, moved(logits, 0) * scale)
    with pytest.raises(AssertionError):
        assert_close(moved(logits, 1e-4) * scale, moved(logits, 0) * scale)


def test_differences_in_kind_fail(logits: Tensor):
    others = (
        logits.roll(1, 0),
        logits.T,
        -logits,
        logits.half().float(),
        logits.bfloat16().float(),
        torch.zeros_like(logits),
        logits + 1e-4,
    )
    for other in others:
        with pytest.raises(AssertionError):
            assert_close(other, logits)
    for size in (47, 2255):
        with pytest.raises(RuntimeError, match="shape"):
            assert_close(logits.flatten()[:size], logits)


def test_zeros_are_equal_to_zeros_alone():
    zeros = torch.zeros(3)
    assert_close(zeros, zeros)
    with pytest.raises(AssertionError):
        assert_close(zeros + 1e-9, zeros)


def test_a_reference_that_is_not_finite_is_no_reference(logits: Tensor):
    for value in (float("nan"), float("inf")):
        with pytest.raises(AssertionError):
            assert_close(logits, moved(logits, value))
        with pytest.raises(AssertionError):
            assert_close(moved(logits, value), moved(logits, value))


def test_a_gradient_that_is_another_fails(logits: Tensor):
    assert_close_after_a_step(logits * (1 + 5e-5), logits, "gradient")
    with pytest.raises(AssertionError, match="gradient differs"):
        assert_close_after_a_step(logits * 1.001, logits, "gradient")
