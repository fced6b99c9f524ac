"""Kept features of images: training on them is training on the images, without augmentation and without the encoder."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from shapes_data import shapes_data
from tiny_blip2 import WIDTH, clip

from blip.config import ConfigError, load_config
from blip.data.features import read_features
from blip.runs.cache_features import cache_features, features_or_images
from blip.runs.config import RunConfig
from blip.runs.context import RunContext
from blip.runs.report_blip2 import features_saved
from blip.runs.train import train
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.shards.sample import BadSample

WORLD = ("data.world.gold=48", "data.world.web=16", "data.world.test=8", "per_shard=32")


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    shapes_data(root, WORLD)
    clip(root / "clip")
    return root


def settings(root: Path, *more: str) -> tuple[str, ...]:
    return (
        "steps=3",
        "sources=[gold]",
        f"model.vision={{source: {root / 'clip'}, size: 32, width: {WIDTH}}}",
        "model.text={width: 16, depth: 2, heads: 2, feed_forward: 32, positions: 48}",
        "model.queries=4",
        "init.text=null",
        "transform={size: 32, min_scale: 1.0, flip: false, augment: none}",
        "loader={batch: 16, streams: 4}",
        "schedule={warmup_steps: 2}",
        *more,
    )


def context(root: Path, *more: str) -> RunContext:
    return RunContext(preset="base", overrides=settings(root, *more), store=str(root / "store"))


@pytest.fixture(scope="module")
def features(root: Path) -> Path:
    made = cache_features(context(root), "blip2_stage1", data=root / "data", out=root / "kept", batch=7)
    assert (made.images, made.found, made.rejected) == (48, 0, {})
    return root / "kept"


def test_training_on_features_is_training_on_images(root: Path, features: Path):
    plain = train(context(root), "blip2_stage1", data=root / "data", out=root / "plain")
    kept = train(context(root, "task.features=true"), "blip2_stage1", data=features, out=root / "fast")
    assert kept.losses == pytest.approx(plain.losses, rel=1e-5)
    expected, found = (load_file(root / name / "model.safetensors") for name in ("plain", "fast"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name


def test_features_keep_texts_and_name_their_encoder(root: Path, features: Path):
    images, kept = Manifest.load(root / "data" / "gold.json"), Manifest.load(features / "gold.json")
    assert kept.parents == (images.digest,)
    assert set(kept.meta["features"]) == {"digest", "layer", "size"}
    pairs = [
        (before, after)
        for first, second in zip(images.shards, kept.shards, strict=True)
        for before, after in zip(read_shard(images.store, first), read_shard(kept.store, second), strict=True)
    ]
    assert len(pairs) == 48
    for before, after in pairs:
        assert (after.key, after.texts, after.meta) == (before.key, before.texts, before.meta)
        assert read_features(after.images[0]).shape == (17, WIDTH)


def test_the_report_says_what_kept_features_saved_by_measured_speeds(root: Path, tmp_path: Path):
    asked = context(root, "task.features=true").model_copy(update={"store": str(tmp_path / "store")})
    made = features_or_images(asked, "blip2_stage1", data=root / "data", out=tmp_path / "kept")
    assert made.images == 48
    assert made.images_per_second > 0
    trained = train(asked, "blip2_stage1", data=tmp_path / "kept", out=tmp_path / "model")
    assert trained.images_per_second > 0
    said = features_saved({"features": made, "stage1": trained})
    assert "read each of 48 images once" in said
    assert "took 48 images from these features" in said  # three steps of 16
    factor = 1 + trained.images_per_second / made.images_per_second
    assert f"would take {factor:.2f} times as long" in said


def test_a_stage_that_asks_for_no_features_trains_on_the_images(root: Path, tmp_path: Path):
    made = features_or_images(context(root), "blip2_stage1", data=root / "data", out=tmp_path / "same")
    assert (made.images, made.images_per_second) == (0, 0.0)
    assert Manifest.load(tmp_path / "same" / "gold.json") == Manifest.load(root / "data" / "gold.json")
    trained = train(context(root), "blip2_stage1", data=tmp_path / "same", out=tmp_path / "model")
    assert features_saved({"features": made, "stage1": trained}) == ""


@pytest.mark.usefixtures("features")
def test_the_encoder_may_be_one_that_make_frozen_wrote(root: Path, tmp_path: Path):
    (tmp_path / "frozen.json").write_text(json.dumps({"vision": str(root / "clip")}))
    more = ("model.vision.source=frozen:vision",)
    with pytest.raises(ConfigError, match="name the folder that `blip make-frozen` wrote"):
        cache_features(context(root, *more), "blip2_stage1", data=root / "data", out=tmp_path / "kept")
    made = cache_features(
        context(root, *more), "blip2_stage1", data=root / "data", out=tmp_path / "kept", frozen=tmp_path
    )
    assert (made.images, made.found) == (0, 48)  # the same encoder's features, by its digest


def test_shards_that_are_done_are_not_made_again(root: Path, features: Path, tmp_path: Path):
    again = cache_features(context(root), "blip2_stage1", data=root / "data", out=tmp_path / "again")
    assert (again.images, again.found) == (0, 48)
    assert Manifest.load(tmp_path / "again" / "gold.json") == Manifest.load(features / "gold.json")
    other = cache_features(context(root, "model.vision.layer=-1"), "blip2_stage1", data=root / "data", out=tmp_path)
    assert (other.images, other.found) == (48, 0)


def test_data_that_do_not_fit_are_refused_before_anything_runs(root: Path, features: Path, tmp_path: Path):
    for data, more, said in (
        (root / "data", ("task.features=true",), "hold images: make them features by blip cache-features"),
        (features, (), "hold features instead of images: set task.features=true"),
        (features, ("task.features=true", "model.vision.layer=-1"), "are of another image encoder, layer or size"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(context(root, *more), "blip2_stage1", data=data, out=tmp_path / "model")
    for more, said in (
        ("transform.flip=true", "task.features is true, but transform changes images"),
        ("model.vision.trained=true", "task.features is true, but model.vision.trained is too"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(RunConfig, "blip2_stage1", "base", settings(root, "task.features=true", more))
    empty = tmp_path / "empty"
    empty.mkdir()
    for manifest in map(Manifest.load, (root / "data").glob("*.json")):
        manifest.model_copy(update={"shards": ()}).save(empty / f"{manifest.name}.json")
    with pytest.raises(ConfigError, match=r"\.json: there is no sample in it"):
        cache_features(context(root, "task.features=true"), "blip2_stage1", data=empty, out=tmp_path / "none")
    with pytest.raises(ConfigError, match="stage pretrain: has no frozen image encoder"):
        cache_features(RunContext(preset="shapes", overrides=(), store=""), "pretrain", data=features, out=tmp_path)


def test_features_that_cannot_be_read_are_a_bad_sample():
    with pytest.raises(BadSample, match="features cannot be read"):
        read_features(b"no features")
