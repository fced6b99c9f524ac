"""The precision that a training has on this machine."""

import pytest
import torch

from blip.training.engine import EngineConfig, precision

BF16 = {"avx512_bf16": True, "amx_bf16": False}
AMX = {"avx512_bf16": False, "amx_bf16": True}
NEITHER = {"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}
ARM = {"sve": True}


@pytest.mark.parametrize(
    ("setting", "gpu", "cpu", "chosen"),
    [
        ("auto", False, BF16, "fp32"),
        ("auto", True, NEITHER, "bf16"),
        ("fast", False, BF16, "bf16"),
        ("fast", False, AMX, "bf16"),
        ("fast", False, NEITHER, "fp32"),
        ("fast", False, ARM, "fp32"),
        ("fast", True, NEITHER, "bf16"),
        ("fp32", True, BF16, "fp32"),
        ("bf16", False, NEITHER, "bf16"),
    ],
)
def test_bf16_is_taken_where_it_is_faster(setting, gpu, cpu, chosen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert precision(EngineConfig(precision=setting)) == chosen
