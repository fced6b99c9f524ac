"""What a model is, is found out from its files."""

from pathlib import Path

import pytest
from tiny_models import both, captioner, model_folder
from tiny_others import clip, git, llava, openai_clip, siglip

from blip.config import ConfigError
from blip.models.generation import Nucleus
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.load import load_captioner, load_filter
from blip.zoo.recognise import recognise

KINDS = {
    clip: "dual_encoder",
    siglip: "dual_encoder",
    git: "vision_language",
    llava: "vision_language",
    openai_clip: "open_clip",
}


@pytest.mark.parametrize(("make", "kind"), KINDS.items())
def test_others_models_are_recognised(make, kind: str, tmp_path: Path):
    assert recognise(make(tmp_path / "model")) == kind


def test_ours_are_recognised(tmp_path: Path):
    assert recognise(Path(model_folder(both(), tmp_path))) == "ours"


def test_what_is_none_of_them_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"is no model folder, looked for config.json, open_clip_config.json"):
        recognise(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="model_type 'bert' neither writes texts of images nor embeds"):
        recognise(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has neither task and model, as ours, nor transformers' model_type"):
        recognise(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.onnx: a file of weights ends in \.safetensors"):
        recognise(tmp_path / "model.onnx")


def test_a_model_in_the_wrong_role_is_refused(tmp_path: Path):
    stream = (Nucleus(), 42, "float32")
    with pytest.raises(ConfigError, match="this model writes no texts; name it as filter"):
        load_captioner(clip(tmp_path / "clip"), *stream, VisionLanguageConfig())
    with pytest.raises(ConfigError, match="this model writes texts but scores none; name it as captioner"):
        load_filter(git(tmp_path / "git"), "float32", DualEncoderConfig())
    with pytest.raises(ConfigError, match="the filter must be trained for retrieval or pretraining"):
        load_filter(Path(model_folder(captioner(), tmp_path / "ours")), "float32", DualEncoderConfig())
