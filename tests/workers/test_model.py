"""Model folders as workers receive them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blip.config import ConfigError
from blip.models.weights.content import SIDE_FILE
from blip.storage import open_store
from blip.storage.s3 import S3Store
from blip.workers.model import RUN_RECORD, ModelSource, model_digest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "tokenizer/vocab.txt", SIDE_FILE):
        (tmp_path / "model" / name).write_text(name)
    save_file(
        {"a": torch.ones(2), "b": torch.zeros(1)},
        tmp_path / "model" / "model.safetensors",
        metadata={"x": "1", "y": "2"},
    )
    return tmp_path / "model"


def test_equal_tensors_are_the_same_model_and_other_settings_another(model: Path, tmp_path: Path):
    found = ModelSource.publish(open_store(tmp_path), "model", model).digest
    save_file({"b": torch.zeros(1), "a": torch.ones(2)}, model / "model.safetensors", metadata={"y": "2"})
    for name in (SIDE_FILE, RUN_RECORD):
        (model / name).write_text("of another training")
    assert model_digest(model) == found
    (model / "tokenizer/vocab.txt").write_text("other words")
    assert model_digest(model) != found


def test_a_folder_without_weights_is_no_model(tmp_path: Path):
    with pytest.raises(ConfigError, match="contains no weights"):
        ModelSource.publish(open_store(tmp_path), "model", tmp_path)


def test_a_model_is_whole_where_a_listing_is_old(model: Path, s3: str, monkeypatch: pytest.MonkeyPatch):
    source = ModelSource.publish(open_store(s3), "model", model)
    monkeypatch.setattr(S3Store, "list", lambda *_: ["config.json"])
    with ModelSource.model_validate(source.model_dump(mode="json")).folder() as folder:
        assert contents(folder) == {name: data for name, data in contents(model).items() if name != SIDE_FILE}


def test_a_job_of_an_earlier_version_does_not_say_what_lies_there(model: Path, s3: str):
    source = ModelSource.publish(open_store(s3), "model", model)
    with ModelSource(digest=source.digest, at=source.at).folder() as folder:
        assert set(contents(folder)) == {"config.json", "model.safetensors", "tokenizer/vocab.txt"}
