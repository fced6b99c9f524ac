"""The recipes of BLIP-2 carry the paper's hyperparameters, and its models the paper's numbers of trained parameters."""

import pytest
import torch

from blip.config import ConfigError, load_config
from blip.models.blip2 import Blip2, Blip2Config, QFormerModel
from blip.runs.config import RunConfig
from blip.tasks.blip2_stage2 import Blip2Stage2Config


@pytest.mark.parametrize(
    ("stage", "steps", "batch", "floor"), [("blip2_stage1", 250_000, 1680, 0.0), ("blip2_stage2", 80_000, 1920, 5e-5)]
)
def test_the_recipes_say_what_the_paper_says(stage: str, steps: int, batch: int, floor: float):
    cfg = load_config(RunConfig, stage, "base")
    assert (cfg.steps, cfg.epochs, cfg.loader.batch) == (steps, None, batch)
    assert (cfg.optimizer.lr, cfg.optimizer.betas, cfg.optimizer.weight_decay) == (1e-4, (0.9, 0.98), 0.05)
    assert (cfg.schedule.kind, cfg.schedule.warmup_steps, cfg.schedule.floor) == ("cosine", 2000, floor)
    assert (cfg.transform.size, cfg.transform.min_scale, cfg.transform.augment) == (224, 0.5, "none")
    assert isinstance(cfg.model, Blip2Config)
    assert (cfg.model.queries, cfg.model.cross_every, cfg.model.vision.layer) == (32, 2, -2)
    assert cfg.loader.micro_batch is not None
    assert cfg.loader.batch % (16 * cfg.loader.micro_batch) == 0, "it trains on a node of 16 GPUs"


def trained(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_first_stage_trains_187_million():
    cfg = load_config(RunConfig, "blip2_stage1", "base")
    assert isinstance(cfg.model, Blip2Config)
    with torch.device("meta"):
        model = QFormerModel(cfg.model, None)
    assert trained(model) == 186_705_469  # and the temperature, which is the task's; the paper says 188 M


@pytest.mark.parametrize(
    ("images", "words", "millions"),
    [(1408, 2560, 107.1), (1408, 4096, 108.3), (1408, 2048, 106.7), (1024, 2560, 103.6), (1024, 2048, 103.2)],
    ids=["g, OPT 2.7B", "g, OPT 6.7B and T5 XXL", "g, T5 XL", "L, OPT 2.7B", "L, T5 XL"],
)
def test_the_second_stage_trains_103_to_108_million(images: int, words: int, millions: float):
    overrides = [f"model.vision.width={images}", f"model.language_model.width={words}"]
    cfg = load_config(RunConfig, "blip2_stage2", "base", overrides)
    assert isinstance(cfg.task, Blip2Stage2Config)
    assert isinstance(cfg.model, Blip2Config)
    with torch.device("meta"):
        model = Blip2(cfg.model, None, None)
    assert round(trained(model) / 1e6, 1) == millions


def test_zero_3_is_refused_with_the_reason():
    with pytest.raises(
        ConfigError, match=r"engine.zero is 3, but this model has frozen parts: each process holds them"
    ):
        load_config(RunConfig, "blip2_stage2", "base", ["engine.zero=3"])


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"model.type is med, but a model for blip2_stage1 is of type blip2"):
        load_config(RunConfig, "blip2_stage1", "base", ["model={type: med}"])
    with pytest.raises(ConfigError, match=r"model.type is blip2, but a model for pretraining is of type med"):
        load_config(RunConfig, "pretrain", "base", ["model={type: blip2}"])


def test_a_run_has_steps_or_epochs():
    with pytest.raises(ConfigError, match=r"epochs is 2.0 and steps is 250000: a run needs one of them"):
        load_config(RunConfig, "blip2_stage1", "base", ["epochs=2"])
    assert load_config(RunConfig, "blip2_stage1", "base", ["epochs=2", "steps=null"]).epochs == 2
