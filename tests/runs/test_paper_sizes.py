"""The configurations of the paper's size carry the paper's hyperparameters."""

import pytest
import torch
from timm.models import get_pretrained_cfg, is_model

from blip.config import load_config
from blip.runs.config import RunConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig

PAPER = {
    ("base", "pretrain"): (20, 2880, 3e-4, 224),
    ("large", "pretrain"): (20, 2400, 2e-4, 224),
    ("base", "captioner"): (5, 256, 1e-5, 384),
    ("large", "captioner"): (5, 256, 2e-6, 384),
    ("base", "filter"): (6, 256, 1e-5, 384),
    ("large", "filter"): (6, 256, 5e-6, 384),
    ("base", "retrieval"): (6, 256, 1e-5, 384),
    ("large", "retrieval"): (6, 256, 5e-6, 384),
    ("base", "retrieval_flickr30k"): (6, 256, 1e-5, 384),
    ("base", "captioning"): (5, 256, 1e-5, 384),
    ("large", "captioning"): (5, 256, 2e-6, 384),
    ("base", "vqa"): (10, 256, 2e-5, 480),
    ("base", "nlvr"): (15, 256, 3e-5, 384),
    ("base", "dialog"): (20, 240, 2e-5, 384),
}
"""Epochs, batch, peak learning rate, and pixels of a side (BLIP, section 4.1 and Table 14)."""


@pytest.mark.parametrize(("preset", "stage"), PAPER)
def test_a_preset_says_what_the_paper_says(preset: str, stage: str):
    cfg = load_config(RunConfig, stage, preset)
    assert (cfg.epochs, cfg.loader.batch, cfg.optimizer.lr, cfg.transform.size) == PAPER[preset, stage]
    assert cfg.optimizer.weight_decay == 0.05
    assert cfg.transform.min_scale == (0.2 if stage == "pretrain" else 0.5)
    assert (cfg.model.text.depth, cfg.model.text.width, cfg.model.text.heads, cfg.model.text.vocab_size) == (
        12,
        768,
        12,
        30524,
    )
    assert cfg.loader.micro_batch is not None
    assert cfg.loader.batch % (8 * cfg.loader.micro_batch) == 0, "it trains on a node of 8 GPUs"


@pytest.mark.parametrize(("preset", "parameters"), [("base", 252_441_918), ("large", 474_729_022)])
def test_the_models_have_the_papers_sizes(preset: str, parameters: int):
    cfg = load_config(RunConfig, "pretrain", preset)
    with torch.device("meta"):
        model = cfg.task.build_model(cfg.model)
    # 252 M is the paper's figure for ViT-B (Table 3); the temperature is the task's
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("preset", ["base", "large"])
def test_the_image_encoder_starts_from_a_model_that_timm_has_of_this_size(preset: str):
    cfg = load_config(RunConfig, "pretrain", preset)
    assert cfg.init.vision is not None
    assert cfg.init.text == "google-bert/bert-base-uncased"
    assert is_model(cfg.init.vision)
    known = get_pretrained_cfg(cfg.init.vision)
    assert known is not None
    assert known.hf_hub_id == f"timm/{cfg.init.vision}"
    assert known.input_size == (3, 224, 224)


def test_only_what_distinguishes_large_from_base_differs():
    for stage in ("pretrain", "captioner", "filter"):
        base, large = (load_config(RunConfig, stage, size).model_dump() for size in ("base", "large"))
        differs = {
            f"{part}.{key}"
            for part in base
            if isinstance(base[part], dict)
            for key in base[part]
            if base[part][key] != large[part][key]
        }
        assert differs <= {"model.vision", "init.vision", "optimizer.lr", "loader.batch", "loader.micro_batch"}
        assert (
            large["model"]["vision"]["width"],
            large["model"]["vision"]["depth"],
            large["model"]["vision"]["heads"],
        ) == (1024, 24, 16)


def test_the_reference_presets_turn_on_every_switch():
    pretrain, captioner, text_filter = (
        load_config(RunConfig, stage, "reference") for stage in ("pretrain", "captioner", "filter")
    )
    for cfg in (pretrain, captioner, text_filter):
        assert (cfg.optimizer.decay_scope, cfg.optimizer.grad_clip, cfg.transform.augment) == ("all", None, "reference")
        assert cfg.schedule.by == "epoch"
    assert isinstance(pretrain.task, PretrainingConfig)
    assert isinstance(captioner.task, CaptioningConfig)
    assert isinstance(text_filter.task, RetrievalConfig)
    for task in (pretrain.task, text_filter.task):
        assert (task.alignment.queue_init, task.alignment.teacher_mode) == ("random", "train")
    assert pretrain.task.alignment.same_image == "negative"
    assert (pretrain.task.lm_reduction, captioner.task.lm_reduction) == ("rank", "rank")
    assert (pretrain.loader.batch, pretrain.schedule.decay) == (2400, 0.9)
