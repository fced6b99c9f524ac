"""A step that is not finite changes nothing, on tasks with momentum weights, a queue and a temperature."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_models import SIZE, TEXTS, config, tokenizer
from torch import Tensor

from blip.batch import Batch, Example
from blip.models.med import MED
from blip.storage import open_store
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.text import TextLengths
from blip.training.checkpoint import CheckpointConfig, Checkpoints
from blip.training.engine import Engine, EngineConfig, NonFiniteError
from blip.training.loop import fit
from blip.training.optimizer import OptimizerConfig, ScheduleConfig

FAILING = 3
ALIGNMENT = AlignmentConfig(
    queue=24, momentum=0.9, temperature=0.6
)  # out of its bounds, so that the first step changes it
TASKS = {
    "pretraining": lambda: Pretraining(
        PretrainingConfig(alignment=ALIGNMENT, text=TextLengths(tokens=12)), MED(config()), tokenizer()
    ),
    "retrieval": lambda: Retrieval(
        RetrievalConfig(alignment=ALIGNMENT, text=TextLengths(tokens=12)), MED(config(), decoder=False), tokenizer()
    ),
}


def make_engine(kind: str, zero: int, accumulation: int, poison: str = "", **options) -> Engine:
    """An engine whose loss or gradient is not a number at one step."""
    torch.manual_seed(0)
    task = TASKS[kind]()
    engine = Engine(
        task,
        EngineConfig.model_validate({"zero": zero}),
        OptimizerConfig(lr=1e-2),
        ScheduleConfig(kind="constant"),
        steps=6,
        steps_per_epoch=4,
        accumulation=accumulation,
        seed=3,
        **options,
    )
    forward = task.forward

    def poisoned(batch: Batch) -> dict[str, Tensor]:
        losses = forward(batch)
        if engine.step == FAILING and poison == "loss":
            losses["itm"] = losses["itm"] * float("nan")
        if engine.step == FAILING and poison == "gradient":
            flat = task.model.itm_head.bias - task.model.itm_head.bias.detach()
            losses["itm"] = losses["itm"] + flat.abs().pow(0.5).sum()
        return losses

    task.forward = poisoned
    return engine


def batches(engine: Engine, start: int) -> Iterator[Batch]:
    """Returns micro-batches of four samples that depend on the step and their index alone."""
    step = start
    while True:
        for part in range(engine.accumulation):
            draws = torch.Generator().manual_seed(10 * step + part)
            images = torch.randint(256, (4, 3, SIZE, SIZE), generator=draws, dtype=torch.uint8)
            texts = [TEXTS[i] for i in torch.randint(len(TEXTS), (4,), generator=draws)]
            yield engine.task.collate([Example(f"{step}-{part}-{i}", images[i], [texts[i]]) for i in range(4)])
        step += 1


def different(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    assert expected.keys() == found.keys()
    return [name for name in expected if not torch.equal(expected[name], found[name])]


@pytest.mark.parametrize(
    ("zero", "accumulation", "poison"),
    [(0, 1, "gradient"), (0, 2, "loss"), (1, 1, "loss"), (1, 2, "gradient"), (2, 2, "loss")],
)
def test_a_step_that_fails_leaves_the_state_before_it_and_can_be_made_again(
    tmp_path: Path, zero: int, accumulation: int, poison: str
):
    healthy = make_engine("pretraining", zero, accumulation)
    stream = batches(healthy, 0)
    for _ in range(FAILING):
        healthy.train(list(islice(stream, accumulation)))
    before = healthy.state()
    fit(healthy, stream)

    failing = make_engine("pretraining", zero, accumulation, poison)
    checkpoints = Checkpoints(open_store(tmp_path), CheckpointConfig(), {})
    with pytest.raises(NonFiniteError, match=f"step {FAILING}: not finite"):
        fit(failing, batches(failing, 0), [], checkpoints)
    assert different(before, failing.state()) == []
    evidence = checkpoints.newest()
    assert evidence is not None
    assert evidence.step == FAILING
    assert different(before, evidence.state) == []

    failing.task.forward = type(failing.task).forward.__get__(failing.task)
    fit(failing, batches(failing, FAILING))
    assert different(healthy.state(), failing.state()) == [], "made again in the same process"
    resumed = make_engine("pretraining", zero, accumulation, state=evidence.state, step=evidence.step)
    fit(resumed, batches(resumed, FAILING))
    assert different(healthy.state(), resumed.state()) == [], "made again from the evidence"


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_a_failed_step_does_not_move_the_teacher_or_the_temperature(kind: str):
    engine = make_engine(kind, 1, 1, "loss")
    stream = batches(engine, 0)
    for _ in range(FAILING):
        engine.train([next(stream)])
    before = {name: tensor.clone() for name, tensor in engine.task.alignment.state_dict().items()}
    with pytest.raises(NonFiniteError):
        engine.train([next(stream)])
    assert different(before, engine.task.alignment.state_dict()) == []
    assert engine.task.alignment.pending == []
