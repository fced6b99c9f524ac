"""The time of the bootstrap's trainings, told before they begin."""

import pytest

from blip.config import ConfigError, load_config
from blip.runs.config import RunConfig
from blip.runs.estimate import estimate, images_by_source, images_seen, in_words, seconds_per_image


def seen(stage: str, sources: dict[str, float], *settings: str) -> float:
    return images_seen(load_config(RunConfig, stage, "small", settings), sources)


def test_images_are_counted_as_often_as_they_come():
    sources = images_by_source(1000, ["pretrain.epochs=4", "ingest.data.split=gold=0.2/web=0.7/test=0.1"])
    assert sources == pytest.approx({"gold": 200, "web": 700})
    # a lead of 8 epochs of gold, then 4 of gold four times and web once
    assert seen("pretrain", sources) == pytest.approx(8 * 200 + 4 * (4 * 200 + 700))
    assert seen("pretrain", sources, "lead=null", "repeats={}", "epochs=0.5") == pytest.approx(450)
    assert seen("pretrain", sources, "steps=10", "epochs=null", "loader.batch=32") == 320
    assert seen("captioner", sources) == pytest.approx(16 * 200)


def test_one_set_is_gold_and_web_at_once():
    assert images_by_source(1000, []) == pytest.approx({"gold": 900, "web": 900})
    assert images_by_source(1000, ["ingest.data.split=0.5/0.5"]) == pytest.approx({"gold": 500, "web": 500})
    with pytest.raises(ConfigError, match="the shares make"):
        images_by_source(1000, ["ingest.data.split=0.5/0.1"])


def test_a_larger_model_takes_longer():
    shapes = load_config(RunConfig, "pretrain", "shapes", [])
    larger = load_config(RunConfig, "pretrain", "shapes", ["model.vision.depth=60"])
    assert 0 < 2 * seconds_per_image(shapes) < seconds_per_image(larger)


def test_it_is_told_in_a_line():
    few = ["pretrain.epochs=null", "pretrain.steps=1", "pretrain.lead=null"]
    line = estimate(100, "shapes", few)
    assert "its four trainings see about" in line
    assert "\n" not in line
    assert [in_words(hours) for hours in (0.001, 0.5, 5.4, 47.4, 60)] == [
        "about 1 minutes",
        "about 30 minutes",
        "about 5 hours",
        "about 47 hours",
        "about 2 days",
    ]
