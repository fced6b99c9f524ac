"""A tiny task with all that makes resuming hard: a tied head, momentum weights, a queue, dropout, a frozen part."""

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.distributed import all_gather, rank, world
from blip.objectives.contrastive import FeatureQueue
from blip.tasks.task import Task

VOCABULARY, WIDTH = 11, 8


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.word.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        for layer in self.layers:
            x = x + F.dropout(layer(x).tanh(), 0.1, self.training)
        return self.norm(x)


class ToyTask(Task):
    """Predicts the next token, and contrasts sentences with momentum features in a queue."""

    momentum_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.student = Student()
        self.teacher = Student().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.temperature = nn.Parameter(torch.full((1,), 0.5))
        self.queue = FeatureQueue(20, WIDTH)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.text is not None
        assert batch.image_ids is not None
        ids = batch.text.ids
        hidden = self.student(ids)
        lm = F.cross_entropy(self.student.head(hidden[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        feature = F.normalize(self.frozen(hidden.mean(1)), dim=-1)
        with torch.no_grad():
            slow = F.normalize(self.teacher.eval()(ids).mean(1), dim=-1)
        keys = torch.cat([slow, self.queue.image])
        negative = torch.multinomial(torch.ones(len(ids), len(keys)), 1)[:, 0]
        itc = F.cross_entropy(feature @ keys.T / self.temperature, torch.arange(len(ids)))
        itm = F.relu((feature * (keys[negative] - slow)).sum(1) + 0.2).mean()
        self.pending.append((slow, batch.image_ids))
        return {"itc": itc, "itm": itm, "lm": lm}

    def after_step(self) -> None:
        features, ids = (all_gather(torch.cat(parts)) for parts in zip(*self.pending, strict=True))
        self.queue.enqueue(features, features, ids)
        self.pending.clear()
        self.follow()

    def follow(self) -> None:
        slow, fast = list(self.teacher.parameters()), list(self.student.parameters())
        torch._foreach_lerp_(slow, [p.detach() for p in fast], 0.1)

    def collate(self, examples: list[Example]) -> Batch:
        raise NotImplementedError


class TeacherlessTask(ToyTask):
    """Without EMA updates, which ZeRO-3 cannot do."""

    momentum_teacher: ClassVar[bool] = False

    def follow(self) -> None:
        pass


def batches(start: int, accumulation: int, size: int = 16) -> Iterator[Batch]:
    """Returns this rank's micro-batches of global batches of `size`, which depend on the step alone."""
    step = start
    while True:
        draws = torch.Generator().manual_seed(step)
        ids = torch.randint(VOCABULARY, (size, 6), generator=draws)
        rows = torch.arange(size).chunk(world() * accumulation)[rank() * accumulation : (rank() + 1) * accumulation]
        for part in rows:
            keys = [f"{step}-{row}" for row in part.tolist()]
            yield Batch(
                keys,
                torch.zeros(len(part), 3, 2, 2),
                Tokens(ids[part], torch.ones_like(ids[part]).bool()),
                part + step * size,
            )
        step += 1
