"""Frozen models: what they give, how they are kept out of training state, and what is refused before anything runs."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from tiny_blip2 import WORDS, clip, opt, siglip, t5, timm_model
from torch import nn
from transformers import BertConfig, BertModel, CLIPVisionModel

from blip.config import ConfigError
from blip.models import image_encoder
from blip.models.frozen import Frozen, frozen_digest
from blip.models.image_encoder import ImageEncoderConfig, load_image_encoder
from blip.models.language import source
from blip.models.language.config import LanguageModelConfig
from blip.models.language.source import load_language_model
from blip.models.weights.files import WeightsError

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def encoder(folder: str, **settings) -> ImageEncoderConfig:
    return ImageEncoderConfig(source=folder, **{"size": 16, "width": 16, **settings})


def language(folder: str, **settings) -> LanguageModelConfig:
    return LanguageModelConfig(source=folder, **{"width": WORDS, **settings})


def test_a_frozen_model_is_used_but_in_no_state():
    model = nn.Sequential(Frozen(nn.Linear(2, 3)), nn.Linear(3, 1)).train()
    assert [name for name, _ in model.named_parameters()] == ["1.weight", "1.bias"]
    assert list(model.state_dict()) == ["1.weight", "1.bias"]
    frozen = model[0]
    assert isinstance(frozen, Frozen)
    assert not frozen.network.training
    inputs = torch.ones(1, 2, requires_grad=True)
    model(inputs).sum().backward()
    assert inputs.grad is not None  # gradients pass through it, as through a language model to its soft prompts
    assert all(p.grad is None and not p.requires_grad for p in frozen.network.parameters())
    model.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in frozen.network.parameters())


def test_clip_gives_its_second_last_layer_before_the_norm(tmp_path: Path):
    folder = clip(tmp_path / "clip", layers=4)
    tokens = load_image_encoder(encoder(folder))(IMAGES)
    theirs = CLIPVisionModel.from_pretrained(folder)
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_encoder.CLIP_MEAN, image_encoder.CLIP_STD))
    states = theirs((IMAGES / 255 - mean) / std, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tokens, states[-2])
    first = load_image_encoder(encoder(folder, layer=-4))
    assert len(first.network.encoder.layers) == 1, "what is not used is not kept"
    torch.testing.assert_close(first(IMAGES), states[1])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_vision_transformer_of_timm_gives_its_second_last_layer(tmp_path: Path, name: str):
    folder = timm_model(tmp_path / "timm", name, img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)
    mine = load_image_encoder(encoder(folder))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = (IMAGES / 255 - mine.mean) / mine.std
    [(patches, prefix)] = theirs.forward_intermediates(
        pixels, [1], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(mine(IMAGES), torch.cat([prefix, patches], 1))


def test_siglip_and_networks_without_tokens_are_image_encoders(tmp_path: Path):
    assert load_image_encoder(encoder(siglip(tmp_path / "siglip")))(IMAGES).shape == (2, 4, 16)
    convnext = timm_model(tmp_path / "conv", "convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
    large = IMAGES.repeat(1, 1, 4, 4)
    assert load_image_encoder(encoder(convnext, size=64))(large).shape == (2, 4, 16)
    swin = timm_model(
        tmp_path / "swin", "swin_tiny_patch4_window7_224", img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 1)
    )
    assert load_image_encoder(encoder(swin, size=32))(IMAGES.repeat(1, 1, 2, 2)).shape == (2, 16, 16)


def test_positions_fit_another_image_size(tmp_path: Path):
    for folder in (clip(tmp_path / "clip"), timm_model(tmp_path / "timm")):
        assert load_image_encoder(encoder(folder, size=32))(IMAGES.repeat(1, 1, 2, 2)).shape == (2, 17, 16)


def test_an_encoder_is_known_by_its_weights_not_its_place(tmp_path: Path):
    folder = clip(tmp_path / "clip")
    cfg = image_encoder.with_digest(encoder(folder))
    shutil.copytree(folder, tmp_path / "moved")
    moved = cfg.model_copy(update={"source": str(tmp_path / "moved")})
    torch.testing.assert_close(load_image_encoder(moved)(IMAGES), load_image_encoder(cfg)(IMAGES))
    other = cfg.model_copy(update={"source": clip(tmp_path / "other", seed=1)})
    for load in (load_image_encoder, image_encoder.with_digest):
        with pytest.raises(WeightsError, match="other weights than the model was trained with"):
            load(other)


def test_a_language_model_is_known_by_weights_and_words(tmp_path: Path):
    cfg = source.with_digest(language(opt(tmp_path / "opt")))
    load_language_model(cfg)
    vocabulary = tmp_path / "opt" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"circle"', '"square "'))
    with pytest.raises(WeightsError, match="other weights"):
        load_language_model(cfg)
    assert frozen_digest(tmp_path / "opt") != cfg.digest


def test_a_width_that_does_not_fit_is_refused_before_weights_are_read(tmp_path: Path):
    folder = clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"model.vision.width is 24, but the tokens of .* are 16 wide: set model.vis"):
        image_encoder.with_digest(encoder(folder, width=24))
    words = opt(tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"model.language_model.width is 7, but .* are 24 wide"):
        source.with_digest(language(words, width=7))


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="layer is -9, but the image encoder has 3 layers: set it from -1 to -3"):
        image_encoder.with_digest(encoder(clip(tmp_path / "clip"), layer=-9))


def test_a_folder_without_a_vision_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    shutil.copy(Path(clip(tmp_path / "clip")) / "model.safetensors", tmp_path)
    with pytest.raises(ConfigError, match=r"no config.json that names an architecture of timm or a model_type"):
        image_encoder.with_digest(encoder(str(tmp_path)))


def test_a_language_model_that_takes_no_embeddings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import OPTForCausalLM

    def forward(self, input_ids=None, attention_mask=None):  # noqa: ARG001
        raise AssertionError

    folder = opt(tmp_path / "opt")
    monkeypatch.setattr(OPTForCausalLM, "forward", forward)
    with pytest.raises(ConfigError, match="OPTForCausalLM takes no inputs_embeds, so that queries cannot be given"):
        source.with_digest(language(folder))


def test_a_language_model_is_no_image_encoder(tmp_path: Path):
    with pytest.raises(ConfigError, match="OPTModel takes no images; name a vision model of timm or transformers"):
        image_encoder.with_digest(encoder(opt(tmp_path / "opt"), width=WORDS))


def test_a_language_model_whose_head_would_be_random_is_refused(tmp_path: Path):
    folder = Path(opt(tmp_path / "opt"))
    BertModel(
        BertConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"has no weights for cls\.predictions\..* of BertLMHeadModel, which would be"
    ):
        load_language_model(language(str(folder), width=16))


def test_a_language_model_without_a_tokenizer_is_refused(tmp_path: Path):
    folder = opt(tmp_path / "opt")
    for path in Path(folder).glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer; copy its files there, such as"):
        source.with_digest(language(folder))


def test_a_tokenizer_without_the_end_of_a_text_is_refused(tmp_path: Path):
    folder = opt(tmp_path / "opt")
    with pytest.raises(ConfigError, match=r"end is 'the end', which is no single word of the tokenizer"):
        source.with_digest(language(folder, end="the end"))
    assert load_language_model(language(folder, end="</s>")).end == 1
    folder = t5(tmp_path / "t5")
    settings = tmp_path / "t5" / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "eos_token": None}))
    with pytest.raises(ConfigError, match="its tokenizer has no eos_token, by which a text ends"):
        source.with_digest(language(folder))


def test_weights_may_be_bfloat16(tmp_path: Path):
    model = load_language_model(language(opt(tmp_path / "opt"), precision="bf16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_image_encoder(encoder(clip(tmp_path / "clip"), precision="bf16"))(IMAGES).dtype == torch.bfloat16
