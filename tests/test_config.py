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


MEET = [
    ("pretrain", "model.text.heads=7", "text.width is 64, which 7 heads cannot share"),
    ("pretrain", "model.vision.heads=7", "vision.width is 64, which 7 heads cannot share"),
    ("pretrain", "model.vision.patch=7", "vision.size is 32, which patches of 7 pixels do not fill"),
    ("pretrain", "model.vision.patch=64", "vision.size is 32, which patches of 64 pixels do not fill"),
    ("pretrain", "model.vision.size=64", "transform.size is 32 but model.vision.size is 64"),
    ("pretrain", "model.vision.checkpoint_last=9", "vision.checkpoint_last is 9, but there are 3 blocks"),
    ("pretrain", "model.text.checkpoint_last=9", "text.checkpoint_last is 9, but there are 2 layers"),
    ("pretrain", "task.text.tokens=40", "task.text.tokens is 40, but model.text.positions is 32"),
    ("captioner", "task.text.tokens=33", "task.text.tokens is 33, but model.text.positions is 32"),
    ("filter", "task.text.tokens=33", "task.text.tokens is 33, but model.text.positions is 32"),
    ("pretrain", "model.text.positions=16", "task.text.tokens is 30, but model.text.positions is 16"),
    ("captioner", "task.decoding.max_length=600", "decoding.max_length is 600, but the model has 32 positions"),
    ("captioner", "task.decoding.min_length=21", "min_length is 21, but max_length is 20"),
    ("captioner", "task.decoding.max_length=4", "min_length is 5, but max_length is 4"),
    (
        "captioner",
        "task.decoding={type: beam, min_length: 0, max_length: 3}",
        "decoding.max_length is 3, but the prompt takes 4 tokens of it",
    ),
    ("capfilt", "stream.decoding.min_length=30", "min_length is 30, but max_length is 24"),
    ("capfilt", "stream={captions: 2, decoding: {type: beam}}", "captions is 2, but beam search has one best text"),
    ("evaluate", "captioning.decoding.max_length=2", "min_length is 3, but max_length is 2"),
    ("filter", "task.alignment.negatives=world", "alignment.negatives is world, but text.pad is longest"),
    ("pretrain", "task.alignment.negatives=world", "alignment.negatives is world, but text.pad is longest"),
    ("pretrain", "task.alignment.temperature_bounds=[0.5, 0.001]", "alignment.temperature_bounds are 0.5 and 0.001"),
    ("pretrain", "loader.micro_batch=7", "loader.batch is 64, which micro-batches of 7 do not fill"),
    ("pretrain", "loader.micro_batch=128", "loader.batch is 64, which micro-batches of 128 do not fill"),
    (
        "pretrain",
        "optimizer.layer_decay_of=vision",
        "optimizer.layer_decay_of is vision, which a model for pretraining does not have; choices: v",
    ),
    (
        "captioner",
        "optimizer.layer_decay_of=text_encoder",
        "which a model for captioning does not have; choices: visual_encoder, text_decoder",
    ),
    ("pretrain", "engine.zero=3", "engine.zero is 3, but this task has a momentum teacher"),
    ("evaluate", "retrieval=null", None),
]


@pytest.mark.parametrize(("stage", "override", "said"), MEET)
def test_numbers_that_do_not_fit_together_are_one_short_line(stage: str, override: str, said: str | None):
    if said is None:
        load(configs()[stage], stage, "shapes", [override])
        return
    with pytest.raises(ConfigError) as wrong:
        load(configs()[stage], stage, "shapes", [override])
    line = str(wrong.value)
    assert line.startswith(f"{stage} (preset shapes): ")
    assert said in line
    assert "\n" not in line
    assert ": :" not in line
    assert len(line) < 330, "without the configuration"
