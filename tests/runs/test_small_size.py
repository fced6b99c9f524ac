"""The preset `small` is between the world of shapes and the paper, and needs no hub."""

import pytest
import torch

from blip.config import load_config
from blip.models.weights.content import named_sources
from blip.runs.config import RunConfig
from blip.runs.stages import config_classes, load_stages

DATA = ["ingest.data.type=tars", *(f"ingest.data.{split}={split}.tar" for split in ("gold", "web", "test"))]


@pytest.mark.parametrize(
    ("stage", "size", "parameters"),
    [
        ("pretrain", 128, 32_646_802),
        ("pretrain", 224, 32_697_490),
        ("captioner", 128, 30_982_032),
        ("filter", 128, 30_988_418),
    ],
)
def test_the_models_have_the_sizes_that_the_preset_names(stage: str, size: int, parameters: int):
    sizes = [f"model.vision.size={size}", f"transform.size={size}", "model.text.vocab_size=10000"]
    cfg = load_config(RunConfig, stage, "small", sizes)
    with torch.device("meta"):
        model = cfg.task.model_from(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_it_starts_from_nothing():
    stages = load_stages("small", DATA, [*config_classes()])
    named = {(stage, source) for stage, cfg in stages.items() for _, source, _ in named_sources(cfg)}
    assert not {stage for stage, _ in named} & {"ingest", "pretrain", "captioner", "filter", "capfilt", "evaluate"}


def test_every_stage_of_the_bootstrap_sees_images_of_one_size():
    stages = load_stages("small", DATA)
    training = [cfg for cfg in stages.values() if isinstance(cfg, RunConfig)]
    assert len(training) == 3
    assert {cfg.transform.size for cfg in training} == {128}
    assert {
        cfg.model.model_dump_json(exclude={"vision": {"init_std", "position_std"}, "text": {"init_std"}})
        for cfg in training
    } == {training[0].model.model_dump_json(exclude={"vision": {"init_std", "position_std"}, "text": {"init_std"}})}


def test_drawings_of_the_benchmark_have_the_recipe_of_the_preset():
    small, drawings = (load_stages(preset, DATA) for preset in ("small", "benchmarks/pictures.yaml"))
    for stage, cfg in small.items():
        other = drawings[stage]
        if not isinstance(cfg, RunConfig):
            continue
        assert isinstance(other, RunConfig)
        sizes = {"model", "transform", "loader", "optimizer", "task", "engine"}
        assert other.model_dump(exclude=sizes) == cfg.model_dump(exclude=sizes)
        assert other.task.model_dump() == cfg.task.model_dump()
        assert other.transform.model_copy(update={"size": cfg.transform.size}) == cfg.transform
