"""Checkpoints in and out: every tensor is accounted for."""

import argparse
import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.export import official_tensors
from blip.models.weights.files import WeightsError, read_tensors, write_model, write_tensors
from blip.models.weights.load import Allowed, load_weights, resize_positions

PARTS = {
    "pretrained": MED,
    "captioner": lambda cfg: MED(cfg, encoder=False),
    "filter": lambda cfg: MED(cfg, decoder=False),
    "vqa": VQAModel,
    "nlvr": NLVRModel,
}


def build(kind: str, cfg: MEDConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return PARTS[kind](cfg)


def deeper(cfg: MEDConfig) -> MEDConfig:
    """Deep enough for both kinds of NLVR2's merge layers."""
    return cfg.model_copy(update={"text": cfg.text.model_copy(update={"depth": 7})})


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters(remove_duplicate=False))
    return all(p.equal(theirs[name]) for name, p in one.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("file", ["model.pth", "model.safetensors"])
def test_official_files_go_out_and_come_back(small: MEDConfig, tmp_path: Path, kind: str, file: str):
    ours, other = build(kind, deeper(small), 0), build(kind, deeper(small), 1)
    write_tensors(official_tensors(ours), tmp_path / file)
    report = load_weights(other, str(tmp_path / file))
    assert equal(ours, other)
    assert all(name.endswith("position_ids") for name in report.unused)
    assert not report.missing
    assert set(report.loaded) == {name for name, _ in ours.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("kind", PARTS)
def test_our_own_files_go_out_and_come_back(small: MEDConfig, tmp_path: Path, kind: str):
    ours, other = build(kind, deeper(small), 0), build(kind, deeper(small), 1)
    write_model(ours, tmp_path / "model.safetensors")
    report = load_weights(other, str(tmp_path))
    assert equal(ours, other)
    assert not report.unused
    assert not report.missing


def test_official_names_are_the_references(small: MEDConfig):
    names = set(official_tensors(MED(small)))
    assert {
        "visual_encoder.blocks.1.attn.qkv.weight",
        "visual_encoder.pos_embed",
        "text_encoder.embeddings.word_embeddings.weight",
        "text_encoder.embeddings.position_ids",
        "text_encoder.encoder.layer.1.crossattention.output.LayerNorm.bias",
        "text_decoder.bert.encoder.layer.0.attention.output.dense.weight",
        "text_decoder.bert.encoder.layer.0.intermediate.dense.bias",
        "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.bias",
        "text_decoder.cls.predictions.transform.LayerNorm.weight",
        "vision_proj.weight",
        "itm_head.bias",
    } <= names
    assert not any("layers" in name or "lm_head" in name for name in names)


def test_a_part_of_a_shared_model_starts_from_the_whole_models_file(small: MEDConfig, tmp_path: Path):
    whole, part = MED(small), MED(small, decoder=False)
    write_model(whole, tmp_path / "model.safetensors")
    load_weights(part, str(tmp_path), Allowed(unused=("text_decoder.*", "lm_head.*")))
    assert part.text_encoder.embeddings.word.weight.equal(whole.text_decoder.embeddings.word.weight)


def test_a_tied_tensor_that_is_stored_twice_must_be_equal(small: MEDConfig, tmp_path: Path):
    tensors = official_tensors(MED(small))
    names = [f"encoder.layer.{layer}.crossattention.self.key.weight" for layer in range(2)]
    for name in names:
        tensors[f"text_encoder.{name}"] = tensors[f"text_encoder.{name}"] + 1
    write_tensors(tensors, tmp_path / "model.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(MED(small), str(tmp_path / "model.pth"))
    for name in names:
        assert f"text_decoder.bert.{name} and text_encoder.{name} are one tensor in the model but differ" in str(
            error.value
        )
    assert str(error.value).count(" and text_encoder.") == 2, "nothing else is named"
    assert "not in the" not in str(error.value)
    load_weights(MED(small.model_copy(update={"share": "none"})), str(tmp_path / "model.pth"))


def test_the_two_biases_of_the_words_must_be_equal(small: MEDConfig, tmp_path: Path):
    tensors = official_tensors(MED(small, encoder=False))
    tensors["text_decoder.cls.predictions.bias"] = tensors["text_decoder.cls.predictions.bias"] + 1
    write_tensors(tensors, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"cls\.predictions\.bias"):
        load_weights(MED(small, encoder=False), str(tmp_path / "model.pth"))


def test_what_does_not_fit_is_an_error_that_lists_it(small: MEDConfig, tmp_path: Path):
    tensors = official_tensors(MED(small, decoder=False))
    del tensors["itm_head.bias"]
    tensors["vision_proj.weight"] = torch.zeros(3, 24)
    tensors["something.else"] = torch.zeros(1)
    write_tensors(tensors, tmp_path / "model.pth")
    model = MED(small, decoder=False)
    before = model.text_proj.weight.detach().clone()
    with pytest.raises(WeightsError) as error:
        load_weights(model, str(tmp_path / "model.pth"))
    message = str(error.value)
    assert "not in the model: something.else" in message
    assert "not in the file: itm_head.bias" in message
    assert "of another shape: vision_proj.weight (3, 24) -> (8, 24)" in message
    assert message.count(";") == 2, "nothing else is named"
    assert "\n" not in message
    assert model.text_proj.weight.equal(before), "a model that is refused a file stays as it was"


def test_what_is_allowed_is_reported_and_keeps_its_initial_value(small: MEDConfig, tmp_path: Path):
    tensors = official_tensors(MED(small, decoder=False))
    del tensors["itm_head.bias"]
    tensors["vision_proj.weight"] = torch.zeros(3, 24)
    tensors["temp"] = torch.zeros(())
    write_tensors(tensors, tmp_path / "model.pth")
    model = MED(small, decoder=False)
    before = model.vision_proj.weight.detach().clone()
    report = load_weights(
        model, str(tmp_path / "model.pth"), Allowed(unused=("temp",), missing=("itm_head.*", "vision_proj.weight"))
    )
    assert model.vision_proj.weight.equal(before)
    assert (report.missing, dict(report.mismatched)) == (
        ("itm_head.bias",),
        {"vision_proj.weight": "(3, 24) -> (8, 24)"},
    )
    assert "temp" in report.unused
    assert "missing: itm_head.bias" in str(report)


def test_positions_are_resized_to_the_image(small: MEDConfig, tmp_path: Path):
    trained, larger = (
        MED(small, encoder=False),
        small.model_copy(update={"vision": small.vision.model_copy(update={"size": 32})}),
    )
    write_tensors(official_tensors(trained), tmp_path / "model.pth")
    model = MED(larger, encoder=False)
    report = load_weights(model, str(tmp_path / "model.pth"))
    old, new = (m.visual_encoder.pos_embed for m in (trained, model))
    assert old is not None
    assert new is not None
    assert dict(report.resized) == {"visual_encoder.pos_embed": "(1, 5, 24) -> (1, 17, 24)"}
    assert new[:, 0].equal(old[:, 0]), "the position of [CLS] is kept"
    grid = F.interpolate(
        old[:, 1:].reshape(1, 2, 2, 24).permute(0, 3, 1, 2), size=(4, 4), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(new[0, 1:].reshape(4, 4, 24).permute(2, 0, 1), grid[0])


def test_resizing_to_the_same_grid_changes_nothing():
    positions = torch.randn(1, 17, 8)
    torch.testing.assert_close(resize_positions(positions, 17), positions)


def test_nlvr2_starts_both_cross_attentions_from_the_one_of_a_plain_file(small: MEDConfig, tmp_path: Path):
    plain, model = MED(deeper(small), decoder=False), NLVRModel(deeper(small))
    write_tensors(official_tensors(plain), tmp_path / "model.pth")
    allowed = Allowed(unused=("*_proj.*", "itm_head.*"), missing=("*.merge.*", "cls_head.*"))
    report = load_weights(model, str(tmp_path / "model.pth"), allowed)
    for branch in ("first", "second"):
        for part in ("query", "key", "value", "output"):
            mine = model.get_parameter(f"text_encoder.layers.6.cross_attention.{branch}.{part}.weight")
            assert mine.equal(plain.get_parameter(f"text_encoder.layers.6.cross_attention.{part}.weight"))
    assert {name.split(".")[0] for name in report.missing} == {"text_encoder", "cls_head"}
    assert all("merge" in name or name.startswith("cls_head") for name in report.missing)


def test_a_pickle_that_would_run_code_is_refused(small: MEDConfig, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "model.pth", pickle_module=pickle)
    with pytest.raises(WeightsError, match="without running code"):
        load_weights(MED(small), str(tmp_path / "model.pth"))
    assert not (tmp_path / "sprung").exists()


def test_an_official_training_file_carries_more_than_a_model(small: MEDConfig, tmp_path: Path):
    model = MED(small, encoder=False)
    torch.save(
        {"model": official_tensors(model), "optimizer": {"state": {}}, "config": {"lr": 1e-5}, "epoch": 4},
        tmp_path / "model.pth",
    )
    assert load_weights(MED(small, encoder=False), str(tmp_path / "model.pth")).loaded


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"not tensors"), ("model.pth", b"not tensors"), ("notes.txt", b"")]
)
def test_a_file_that_holds_no_tensors_is_named(small: MEDConfig, tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        load_weights(MED(small), str(tmp_path / name))


def test_a_folder_in_parts_is_read_whole(small: MEDConfig, tmp_path: Path):
    model = MED(small, encoder=False)
    tensors = official_tensors(model)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for part, own in parts.items():
        write_tensors({name: tensors[name] for name in own}, tmp_path / part)
    where = ", ".join(f'"{name}": "{part}"' for part, own in parts.items() for name in own)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{where}}}}}')
    assert read_tensors(tmp_path).keys() == tensors.keys()


def test_a_folder_of_pickles_in_parts_is_read_whole(small: MEDConfig, tmp_path: Path):
    tensors = official_tensors(MED(small, encoder=False))
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:40], "pytorch_model-00002-of-00002.bin": names[40:]}
    for part, own in parts.items():
        torch.save({name: tensors[name] for name in own}, tmp_path / part)
    weight_map = {name: part for part, own in parts.items() for name in own}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert load_weights(MED(small, encoder=False), str(tmp_path)).loaded
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(WeightsError, match=r"names pytorch_model-00002-of-00002\.bin, which is not beside it"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["", "[1]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\udcff", "[" * 100_000]
    + [f'{{"weight_map": {{"a": "{name}"}}}}' for name in ("../model.bin", "/etc/passwd", "notes.txt", "..", "")],
    ids=lambda index: index[:30],
)
def test_a_broken_index_is_named(index: str, tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_bytes(index.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json: ") as error:
        read_tensors(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "blip.net."])
@pytest.mark.parametrize("names", [official_tensors, lambda model: model.state_dict()])
def test_a_prefix_that_all_names_have_is_found(
    small: MEDConfig, tmp_path: Path, prefix: str, names: Callable[[nn.Module], dict[str, Tensor]]
):
    ours, other = MED(small), MED(small)
    write_tensors(
        {prefix + name: tensor for name, tensor in names(ours).items()} | {"temp": torch.zeros(1)},
        tmp_path / "model.pth",
    )
    report = load_weights(other, str(tmp_path / "model.pth"), Allowed(unused=("temp",)))
    assert equal(ours, other)
    assert not report.missing


@pytest.mark.parametrize(
    "section", [("model",), ("state_dict",), ("model_state_dict",), ("module",), ("state_dict", "model"), ("my_net",)]
)
def test_the_section_that_holds_the_model_is_found(small: MEDConfig, tmp_path: Path, section: tuple[str, ...]):
    ours, other = MED(small), MED(small)
    content = official_tensors(ours)
    for name in reversed(section):
        content = {
            name: content,
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        }
    torch.save(content, tmp_path / "model.pth")
    load_weights(other, str(tmp_path / "model.pth"))
    assert equal(ours, other)


def test_several_sections_are_named(tmp_path: Path):
    torch.save(
        {"student": {"a.weight": torch.zeros(1)}, "teacher": {"a.weight": torch.zeros(1)}}, tmp_path / "model.pth"
    )
    with pytest.raises(WeightsError, match="holds tensors under 'student', 'teacher'; save the section to load"):
        read_tensors(tmp_path / "model.pth")
    for nothing in ({}, {"epoch": 3}, {"optimizer": {0: torch.zeros(1)}}):
        torch.save(nothing, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match="contains no tensors by name"):
            read_tensors(tmp_path / "model.pth")


def test_many_tensors_are_named_by_their_parts_in_one_line(small: MEDConfig, tmp_path: Path):
    write_tensors(
        {f"backbone.{i}.weight": torch.zeros(2) for i in range(90)} | {"head.bias": torch.zeros(1)},
        tmp_path / "model.pth",
    )
    with pytest.raises(WeightsError) as error:
        load_weights(MED(small), str(tmp_path / "model.pth"))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert "not in the model: backbone.0.weight and 89 more of backbone.*, head.bias (91 tensors)" in message
    assert "more of text_decoder.*" in message


def test_the_advice_for_a_pickle_with_code_can_be_followed(small: MEDConfig, tmp_path: Path):
    ours, other = MED(small), MED(small)
    arguments = argparse.Namespace(lr=1e-3)
    for content in ({"model": official_tensors(ours), "args": arguments}, official_tensors(ours) | {"args": arguments}):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match=r"argparse\.Namespace") as error:
            load_weights(other, str(tmp_path / "model.pth"))
        message = str(error.value)
        assert "\n" not in message
        command = message[message.index("python -c") :]
        subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), check=True)
        load_weights(other, str(tmp_path / "model-tensors.pth"))
        assert equal(ours, other)


@pytest.mark.parametrize("file", ["model.pth", "model.safetensors", "old.pth"])
def test_damaged_files_are_one_line(small: MEDConfig, tmp_path: Path, file: str):
    tensors = {
        name: tensor for name, tensor in official_tensors(MED(small, encoder=False)).items() if "layer.0" in name
    }
    path = tmp_path / file
    if file == "old.pth":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        write_tensors(tensors, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for trial in range(150):
        data = bytearray(whole if trial % 3 else whole[: rng.integers(len(whole))])
        for place in rng.integers(0, max(min(len(data), 4000 if trial % 2 else len(data)), 1), 3):
            data[place % max(len(data), 1) : place + 1] = bytes([rng.integers(256)])
        path.write_bytes(data)
        try:
            read_tensors(path)
        except WeightsError as error:
            said = str(error)
            assert str(path) in said and "\n" not in said, said  # noqa: PT018
