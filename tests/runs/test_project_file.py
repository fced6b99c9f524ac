"""`blip init`: the file says what each setting means, is the preset that it names, and runs."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel
from typer.testing import CliRunner

from blip.cli import app
from blip.config import ConfigError, load_config
from blip.runs.init import comment, init
from blip.runs.stages import BLIP2, BOOTSTRAP, config_classes, load_stages

TINY = [f"ingest.data.world.{split}={count}" for split, count in {"gold": 6, "web": 8, "test": 4}.items()]


@pytest.mark.parametrize(
    ("preset", "stages"),
    [("shapes", BOOTSTRAP), ("base", BOOTSTRAP), ("reference", BOOTSTRAP), ("blip2_g_xxl", BLIP2), ("shapes", BLIP2)],
)
def test_the_file_holds_every_setting_of_its_preset(tmp_path: Path, preset: str, stages: tuple[str, ...]):
    given = [] if preset == "shapes" else [f"ingest.data.{split}=s3://b/{split}/" for split in ("gold", "web", "test")]
    path = init(tmp_path / "blip.yaml", preset, given, stages)
    assert load_stages(str(path), [], stages) == load_stages(preset, given, stages)
    # its own values, not those of the preset that it extends
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"extends: {preset}\n", ""), encoding="utf-8")
    assert load_stages(str(path), [], stages) == load_stages(preset, given, stages)


def descriptions(config: BaseModel) -> set[str]:
    """Returns what the classes of a configuration say of its settings."""
    found = {field.description for field in type(config).model_fields.values() if field.description}
    for name in type(config).model_fields:
        if isinstance(value := getattr(config, name), BaseModel):
            found |= descriptions(value)
    return found


def test_every_setting_is_explained_as_its_class_explains_it_and_once(tmp_path: Path):
    text = init(tmp_path / "blip.yaml", "shapes", [], BOOTSTRAP).read_text(encoding="utf-8")
    said = " ".join(re.sub(r"^ *# ?", "", line) for line in text.splitlines() if line.lstrip().startswith("#"))
    for config in load_stages("shapes", []).values():
        for description in descriptions(config):
            assert " ".join(description.split()) in said
    once = " ".join((config_classes()["pretrain"].model_fields["epochs"].description or "").split())
    assert said.count(once) == 1
    assert "One of: pretraining, captioning, retrieval" in said
    assert max(len(line) for line in text.splitlines() if "#" in line) <= 120


def test_settings_are_written_as_they_were_given(tmp_path: Path):
    path = init(tmp_path / "blip.yaml", "shapes", ["pretrain.epochs=3", "select.rule.web=0.7"], BOOTSTRAP)
    assert load_config(config_classes()["pretrain"], "pretrain", str(path)).model_dump()["epochs"] == 3
    assert "  epochs: 3.0\n" in path.read_text(encoding="utf-8")


def test_a_file_is_not_overwritten_and_has_the_ending_of_settings(tmp_path: Path):
    path = init(tmp_path / "blip.yaml", "shapes", [], BOOTSTRAP)
    with pytest.raises(ConfigError, match="exists already: delete it, or name another file"):
        init(path, "base", [], BOOTSTRAP)
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        init(tmp_path / "blip.toml", "base", [], BOOTSTRAP)


def test_verbs_read_the_file_by_name_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = [word for setting in TINY for word in ("--set", setting)]
    done = CliRunner().invoke(app, ["init", *settings, "--json"])
    assert json.loads(done.stdout) == {"file": "blip.yaml"}
    for words in (["--config", "blip.yaml"], []):
        done = CliRunner().invoke(app, ["ingest", "--out", f"data{len(words)}", "--json", *words])
        assert done.exit_code == 0, done.stderr
        assert {name: split["samples"] for name, split in json.loads(done.stdout)["splits"].items()} == {
            "gold": 6,
            "web": 8,
            "test": 4,
        }
    Path("blip.yaml").write_text(
        Path("blip.yaml").read_text(encoding="utf-8").replace("web: 8", "web: 9"), encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["ingest", "--out", "changed", "--json"])
    assert json.loads(done.stdout)["splits"]["web"]["samples"] == 9


def test_the_data_are_named_as_for_an_ingestion(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("a black square", encoding="utf-8")
    path = init(tmp_path / "blip.yaml", "base", [], BOOTSTRAP, str(tmp_path / "photos"))
    assert f"    path: {tmp_path / 'photos'}\n" in path.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"set data\.gold=\.\.\."):
        init(tmp_path / "other.yaml", "base", [], BOOTSTRAP)


def test_comments_break_no_words():
    assert comment("a " * 80 + "google-bert/bert-base-uncased").count("google-bert/bert-base-uncased\n") == 1
