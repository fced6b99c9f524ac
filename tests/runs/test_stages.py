import pytest

from blip.config import ConfigError, load_config
from blip.runs.stages import config_classes, load_stages, overrides_for, without_placement


def test_a_stage_gets_its_own_overrides_alone():
    overrides = ["pretrain.optimizer.lr=1e-3", "filter.epochs=2", "pretrain.epochs=1"]
    assert overrides_for("pretrain", overrides) == ["optimizer.lr=1e-3", "epochs=1"]
    assert overrides_for("captioner", overrides) == []


def test_the_debug_size_passes():
    load_stages("shapes", ["pretrain.epochs=0.5", "ingest.per_shard=10"])


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as wrong:
        load_stages("shapes", ["epochs=2", "pretrain.epoch=2", "evaluate.split=3"])
    first, second, third = str(wrong.value).splitlines()
    assert first.startswith("override 'epochs=2' must begin with its stage, one of: ingest, pretrain,")
    assert "unknown key epoch; did you mean epochs?" in second
    assert "split" in third


def test_where_the_work_is_done_is_no_stage():
    assert without_placement(["placement.gpus=8", "pretrain.epochs=1"]) == ["pretrain.epochs=1"]


def test_an_unknown_preset_is_named():
    with pytest.raises(ConfigError, match="'shape' is neither"):
        load_stages("shape", [])


def test_what_a_run_may_spend_reaches_every_stage_and_an_override_goes_before():
    assert overrides_for("pretrain", ["pretrain.epochs=2", "filter.epochs=1"], 100.0) == [
        "max_gpu_hours=100.0",
        "epochs=2",
    ]
    assert overrides_for("pretrain", []) == []
    for stage in ("ingest", "select", "register", "report"):
        assert overrides_for(stage, [], 100.0) == [], "it uses no GPUs, and knows no such setting"
    for stage in ("pretrain", "captioner", "filter", "capfilt", "evaluate"):
        cfg = load_config(config_classes()[stage], stage, "shapes", overrides_for(stage, [], 100.0))
        assert cfg.max_gpu_hours == 100
