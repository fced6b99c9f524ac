"""Configuration: recipes and presets, and that whatever text is given ends in a value or in one line."""

from pathlib import Path

import pytest
import yaml

from blip.config import Config, ConfigError, load, presets, stages
from blip.runs.config import RunConfig
from blip.runs.stages import configs

TARS = ["data.gold=gold", "data.web=web", "data.test=test"]
"""What the recipe of ingestion leaves to people."""


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("stage", stages())
def test_every_preset_has_every_stage(preset: str, stage: str):
    given = TARS if stage == "ingest" and preset != "shapes" else []
    assert isinstance(load(configs()[stage], stage, preset, given), Config)


def test_the_presets_are_the_sizes_and_the_stages_those_of_the_bootstrap():
    assert presets() == ["base", "large", "reference", "shapes"]
    assert set(stages()) == set(configs())


def write(path: Path, **settings: object) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def test_a_file_changes_the_recipe(tmp_path: Path):
    mine = write(tmp_path / "mine.yaml", pretrain={"epochs": 3, "model": {"vision": {"depth": 2}}})
    cfg, base = load(RunConfig, "pretrain", mine), load(RunConfig, "pretrain", "base")
    assert (cfg.epochs, cfg.model.vision.depth) == (3, 2)
    assert cfg.model.vision.width == base.model.vision.width
    assert load(RunConfig, "filter", mine) == load(RunConfig, "filter", "base")


def test_a_file_changes_another_preset_and_that_one_another(tmp_path: Path):
    write(tmp_path / "first.yaml", extends="shapes", pretrain={"epochs": 3})
    second = write(tmp_path / "second.yaml", extends="first.yaml", **{"pretrain, filter": {"optimizer": {"lr": 0.5}}})
    cfg = load(RunConfig, "pretrain", second, ["epochs=7"])
    assert (cfg.epochs, cfg.optimizer.lr, cfg.model.vision.size) == (7, 0.5, 32)
    assert load(RunConfig, "pretrain", second).epochs == 3
    assert load(RunConfig, "captioner", second).optimizer.lr == 3e-3


def test_of_two_keys_of_a_stage_the_later_one_has_the_last_word(tmp_path: Path):
    text = "pretrain, filter: {epochs: 1}\nfilter: {epochs: 2}\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert [load(RunConfig, stage, str(tmp_path / "mine.yaml")).epochs for stage in ("pretrain", "filter")] == [1, 2]


def test_a_section_of_another_type_begins_anew():
    cfg = load(RunConfig, "captioner", "base", ["task.decoding.type=nucleus", "task.decoding.top_p=0.7"])
    assert cfg.task.model_dump()["decoding"] == {
        "type": "nucleus",
        "top_p": 0.7,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "min_length": 5,
        "max_length": 20,
    }


def test_a_section_on_the_command_line_takes_the_place_of_the_recipes():
    cfg = load(RunConfig, "pretrain", "base", ["loader={batch: 8}"])
    assert (cfg.loader.batch, cfg.loader.micro_batch, cfg.loader.workers) == (8, None, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\n", "unknown stage 'epochs'; choices: capfilt, captioner, evaluate, filter, ingest, pretrain, register, extends"),
        ("pretrain: 3\n", "pretrain must hold settings as key: value (given: 3)"),
        ("pretrain, fliter: {}\n", "unknown stage 'fliter'"),
        ("extends: nothing\n", "preset 'nothing' is neither one of: base, large, reference, shapes; nor a .yaml file"),
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: [base]\n", "extends must name a preset"),
        ("pretrain: {epoch: 3}\n", "unknown key epoch; did you mean epochs?"),
        ("- a\n", "must be a mapping of keys to values"),
    ],
)
def test_a_presets_mistake_is_one_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load(RunConfig, "pretrain", str(tmp_path / "mine.yaml"))
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)
