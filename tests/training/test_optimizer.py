import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from blip.config import ConfigError
from blip.training.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    fit_warmup,
    layer_scales,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

STEPS, EPOCH, PEAK = 100, 20, 1e-3


def rate(step: int, **cfg) -> float:
    return learning_rate(ScheduleConfig(**cfg), PEAK, step, STEPS, EPOCH)


def test_warmup_is_linear_and_ends_at_the_peak():
    rates = [rate(step, warmup_steps=10, warmup_from=1e-5) for step in range(11)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(PEAK)
    differences = [b - a for a, b in pairwise(rates)]
    assert differences == pytest.approx([(PEAK - 1e-5) / 10] * 10)


def test_cosine_goes_from_peak_over_half_to_floor():
    cosine = {"warmup_steps": 10, "floor": 1e-4}
    assert rate(10, **cosine) == pytest.approx(PEAK)
    assert rate(55, **cosine) == pytest.approx((PEAK + 1e-4) / 2)
    assert rate(100, **cosine) == pytest.approx(1e-4)
    assert rate(1000, **cosine) == pytest.approx(1e-4)


def test_cosine_by_epoch_is_the_references():
    for step in (0, 19, 20, 55, 99):
        epoch = step // EPOCH
        assert rate(step, by="epoch", floor=1e-5) == pytest.approx(
            1e-5 + (PEAK - 1e-5) * (1 + math.cos(math.pi * epoch / 5)) / 2
        )


def test_exponential_falls_once_an_epoch_down_to_its_floor():
    exponential = {"kind": "exponential", "by": "epoch", "decay": 0.5, "floor": 2e-4}
    assert rate(19, **exponential) == PEAK
    assert rate(20, **exponential) == rate(39, **exponential) == pytest.approx(PEAK / 2)
    assert rate(99, **exponential) == 2e-4


def test_exponential_by_step_meets_the_one_by_epoch_where_epochs_begin():
    assert rate(40, kind="exponential") == pytest.approx(rate(40, kind="exponential", by="epoch"))
    assert rate(40, kind="exponential") > rate(41, kind="exponential") > rate(60, kind="exponential")


def test_constant_stays_after_its_warmup():
    assert rate(5, kind="constant", warmup_steps=10, warmup_from=0.0) == pytest.approx(PEAK / 2)
    assert rate(99, kind="constant", warmup_steps=10) == PEAK


def test_a_peak_below_the_start_of_the_warmup_is_not_exceeded():
    assert learning_rate(ScheduleConfig(warmup_steps=10, warmup_from=1e-6), 1e-8, 0, STEPS, EPOCH) == 1e-8


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 4))
        self.word = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.word.weight
        self.teacher = nn.Linear(4, 4).requires_grad_(False)


def decays(cfg: OptimizerConfig) -> dict[str, float]:
    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in parameter_groups(model, cfg) for p in group["params"]}


def test_matrices_decay_and_vectors_do_not():
    found = decays(OptimizerConfig(weight_decay=0.05))
    assert {name for name, decay in found.items() if decay} == {"word.weight", "linear.weight"}
    assert {name for name, decay in found.items() if not decay} == {
        "cls",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "temperature",
    }


def test_the_reference_decays_all_that_is_trained():
    assert set(decays(OptimizerConfig(weight_decay=0.05, decay_scope="all")).values()) == {0.05}


def test_layers_learn_the_slower_the_lower_they_stand():
    names = [
        "model.visual_encoder.pos_embed",
        "model.visual_encoder.blocks.0.attn.weight",
        "model.visual_encoder.blocks.1.norm.bias",
    ]
    names += ["model.visual_encoder.norm.weight", "model.text_encoder.layers.0.query.weight", "temperature"]
    assert list(layer_scales(names, OptimizerConfig(layer_decay=0.5)).values()) == [0.125, 0.25, 0.5, 1.0, 1.0, 1.0]


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual_encoder = nn.ModuleDict(
            {"embed": nn.Linear(1, 1), "blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(2))}
        )
        self.head = nn.Linear(1, 1)


def test_layer_decay_is_in_the_steps_that_are_made():
    tower = Tower()
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    optimizer = build_optimizer(tower, OptimizerConfig(lr=1.0, weight_decay=0, layer_decay=0.5))
    set_learning_rate(optimizer.param_groups, 1e-2)
    for parameter in tower.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # Adam's first step is the rate itself
    moved = [(before[name] - p.detach()).item() for name, p in tower.named_parameters() if name.endswith("bias")]
    assert moved == pytest.approx([1e-2 / 8, 1e-2 / 4, 1e-2 / 2, 1e-2], rel=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "exponential", "constant"])
@pytest.mark.parametrize("steps", [2, 8, 49, 50])
def test_a_warmup_that_outlasts_the_run_is_shortened_and_said_so(
    steps: int, kind: str, caplog: pytest.LogCaptureFixture
):
    fitted = fit_warmup(ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 50}), steps)
    assert max(learning_rate(fitted, PEAK, step, steps, EPOCH) for step in range(steps)) > 0.5 * PEAK
    assert f"schedule.warmup_steps is 50, but the run has {steps} steps" in caplog.text


def test_a_warmup_that_ends_in_time_stays(caplog: pytest.LogCaptureFixture):
    for schedule, steps in ((ScheduleConfig(warmup_steps=50), 51), (ScheduleConfig(), 1)):
        assert fit_warmup(schedule, steps) == schedule
    assert caplog.text == ""


def test_a_tower_that_is_not_there_is_named_with_those_that_are():
    names = ["model.vision.blocks.0.weight", "model.text.layers.0.weight", "model.head.weight"]
    with pytest.raises(
        ConfigError, match=r"layer_decay_of is 'visual', which is not a tower of this model; choices: text, vision"
    ):
        layer_scales(names, OptimizerConfig(layer_decay=0.9, layer_decay_of="visual"))
    assert layer_scales(names, OptimizerConfig(layer_decay_of="visual")) == dict.fromkeys(names, 1.0)
