"""Frozen language models in 8 and 4 bits: what they say, and the gradients that they pass to soft prompts."""

from pathlib import Path

import pytest
import torch
from tiny_blip2 import WORDS, opt, t5
from torch import Tensor

from blip.config import ConfigError
from blip.models.frozen import Frozen
from blip.models.generation import Beam
from blip.models.language import source
from blip.models.language.config import LanguageModelConfig
from blip.models.language.language_model import LanguageModel
from blip.models.language.source import load_language_model
from blip.models.weights.files import WeightsError

pytest.importorskip("bitsandbytes")

KINDS = {"opt": opt, "t5": t5}
STORED = {"8bit": torch.int8, "4bit": torch.uint8}
CLOSE = {"8bit": 0.06, "4bit": 0.5}
"""The most by which logits and gradients differ from those of exact weights, of their norm."""


def language(folder: str, quantization: str = "none") -> LanguageModelConfig:
    return LanguageModelConfig.model_validate({"source": folder, "width": WORDS, "quantization": quantization})


def logits_and_gradient(model: LanguageModel) -> tuple[Tensor, Tensor]:
    soft = torch.randn(2, 3, WORDS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model.logits(soft, model.speak(["", ""], ["a red circle", "a blue square"], 16))
    logits.logsumexp(-1).sum().backward()
    assert soft.grad is not None
    return logits.detach(), soft.grad


def distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("quantization", STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_say_nearly_the_same_and_pass_nearly_the_same_gradient(tmp_path: Path, kind: str, quantization: str):
    folder = KINDS[kind](tmp_path / kind)
    exact, model = load_language_model(language(folder)), load_language_model(language(folder, quantization))
    Frozen(model)
    maps = [part for part in model.network.modules() if type(part).__name__ in ("Linear8bitLt", "Linear4bit")]
    assert {part.weight.dtype for part in maps} == {STORED[quantization]}
    linear = sum(isinstance(part, torch.nn.Linear) for part in exact.network.modules())
    assert len(maps) > 0.8 * linear, "all but the head, and what transformers keeps whole in T5"
    expected, (logits, gradient) = logits_and_gradient(exact), logits_and_gradient(model)
    assert distance(logits, expected[0]) < CLOSE[quantization]
    assert distance(gradient, expected[1]) < CLOSE[quantization]
    assert distance(logits, expected[0]) > 0
    assert all(parameter.grad is None for parameter in model.network.parameters())


@pytest.mark.parametrize("quantization", STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_generated_changes_no_later_gradient(tmp_path: Path, kind: str, quantization: str):
    model = load_language_model(language(KINDS[kind](tmp_path / kind), quantization))
    before = logits_and_gradient(model)
    with torch.no_grad():
        written = model.generate(torch.zeros(2, 3, WORDS), ["", ""], Beam(beams=2, min_length=1, max_length=5))
    assert len(model.decode(written.ids)) == 2
    after = logits_and_gradient(model)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert after[1].abs().max() > 0


@pytest.mark.parametrize("quantization", STORED)
def test_weights_are_known_by_the_digest_of_the_whole_ones(tmp_path: Path, quantization: str):
    cfg = source.with_digest(language(opt(tmp_path / "opt"), quantization))
    assert cfg.digest == source.with_digest(language(cfg.source)).digest
    assert load_language_model(cfg)
    opt(tmp_path / "opt", seed=1)
    with pytest.raises(WeightsError, match="holds other weights than the model was trained with"):
        load_language_model(cfg)


def test_without_the_package_few_bits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "find_spec", lambda _: None)
    said = r"^model\.language_model\.quantization is 4bit, which takes the package bitsandbytes: install .*quantized\]"
    with pytest.raises(ConfigError, match=said):
        source.with_digest(language(opt(tmp_path / "opt"), "4bit"))
