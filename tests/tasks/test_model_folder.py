"""A model folder outlives the training that wrote it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import both, model_folder

from blip.config import ConfigError
from blip.tasks.model_folder import CONFIG, MODEL_FORMAT, load_task, read_model_config
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.pretraining import Pretraining
from blip.tasks.vqa import VQA, VQAConfig

PAST = sorted((Path(__file__).parent / "model_folders").iterdir())


@pytest.mark.parametrize("folder", PAST, ids=lambda folder: folder.name)
def test_a_folder_of_every_past_format_loads(folder: Path):
    task = load_task(folder)
    assert isinstance(task, Pretraining)
    assert task.cfg.text.tokens == 30
    image = torch.zeros(1, 3, 16, 16)
    assert torch.isfinite(task.model.image_feature(task.model.encode_image(image))).all()


def test_there_is_a_folder_of_each_past_format():
    assert [folder.name for folder in PAST] == [f"format_{number}" for number in range(MODEL_FORMAT)]


def test_settings_of_the_training_are_not_in_the_folder(tmp_path: Path):
    folder = Path(model_folder(both(), tmp_path / "model"))
    values = json.loads((folder / CONFIG).read_text())
    assert list(values) == ["format", "task", "model"]
    assert "alignment" not in values["task"]
    assert read_model_config(folder).task.text.tokens == 12


def test_a_setting_of_training_that_was_renamed_leaves_an_old_model_readable(tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(PAST[0], folder)
    values = json.loads((folder / CONFIG).read_text())
    values["loader"] = {"readahead": 3}
    values["task"]["alignment"]["distance"] = 1.0
    (folder / CONFIG).write_text(json.dumps(values))
    load_task(folder)


def test_a_format_of_the_future_says_what_to_do(tmp_path: Path):
    (tmp_path / CONFIG).write_text(json.dumps({"format": MODEL_FORMAT + 1, "task": {}, "model": {}}))
    with pytest.raises(ConfigError, match=f"format is {MODEL_FORMAT + 1}.* use a newer version"):
        load_task(tmp_path)


def test_a_model_without_the_parts_of_another_task_is_not_judged_with_random_ones(tmp_path: Path):
    folder = model_folder(both(), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"was trained for pretraining and cannot do nlvr yet: fine-tune it .* cls_h"):
        load_task(folder, NLVRConfig())
    assert isinstance(load_task(folder, VQAConfig(answer_tokens=8)), VQA)


def test_a_folder_that_holds_another_configuration_is_no_model(tmp_path: Path):
    (tmp_path / CONFIG).write_text(json.dumps({"vision_config": {}}))
    with pytest.raises(ConfigError, match="no model folder"):
        load_task(tmp_path)
