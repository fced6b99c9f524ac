"""The image encoder: its tokens, frames, and checkpointing."""

import pytest
import torch

from blip.models.vision import VisionConfig, VisionEncoder

CONFIG = VisionConfig(size=16, patch=8, width=24, depth=3, heads=2)


def test_an_image_becomes_cls_and_one_token_a_patch():
    encoder = VisionEncoder(CONFIG).eval()
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, 1 + 4, 24)
    assert encoder.norm.eps == 1e-6


def test_frames_are_encoded_apart_and_stand_one_after_the_other():
    encoder = VisionEncoder(CONFIG).eval()
    frames = torch.randn(2, 3, 3, 16, 16)
    tokens = encoder(frames)
    assert tokens.shape == (2, 3 * 5, 24)
    torch.testing.assert_close(tokens[:, 5:10], encoder(frames[:, 1]))


@pytest.mark.parametrize("last", [1, 3])
def test_checkpointing_recomputes_the_same_gradients(last: int):
    gradients = []
    for checkpoint_last in (0, last):
        torch.manual_seed(0)
        encoder = VisionEncoder(
            CONFIG.model_copy(update={"checkpoint_last": checkpoint_last, "drop_path": 0.3})
        ).train()
        images = torch.randn(4, 3, 16, 16, requires_grad=True)
        passes = []
        for block in encoder.blocks:
            block.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        encoder(images).square().sum().backward()
        assert len(passes) == CONFIG.depth + checkpoint_last
        gradients.append([p.grad for p in encoder.parameters()] + [images.grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert plain.equal(recomputed)


def test_stochastic_depth_rises_linearly():
    encoder = VisionEncoder(CONFIG.model_copy(update={"drop_path": 0.2}))
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])
