"""What is known of a run beside its weights: curves, alarms and samples that were left out, over all its attempts."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from blip.data.reader import Place
from blip.distributed import is_main
from blip.results import Alarm, Point
from blip.storage import MissingKeyError, Store
from blip.tracking import Run

log = logging.getLogger(__name__)

CURVES, REJECTED = "curves.json", "rejected.json"
LOSS, ALARM = "train/", "alarm/"
"""What the names of losses and alarms begin with."""
Values = dict[str, float]


class RunRecord:
    """The curves of a run: to its tracker, and kept beside the checkpoints so that a run that goes on has all of them.

    What was kept and cannot be read costs curve points alone: the weights know nothing of it.
    """

    def __init__(self, run: Run, store: Store, step: int):
        """`step` is the one that the run goes on from: what was noted after it will come again."""
        self.run, self.store = run, store
        self.points: list[tuple[int, Values]] = []
        self.bad: dict[Place, str] = {}
        if step:
            self.points = [point for point in read_kept(store, CURVES, as_points) if point[0] <= step]
            self.bad = dict(read_kept(store, REJECTED, as_places))

    def __call__(self, step: int, values: Values) -> None:
        self.run.metrics(values, step)
        self.points.append((step, values))

    def reject(self, bad: Mapping[Place, str]) -> None:
        """Notes the samples that could not be used, by shard and row; each counts once."""
        self.bad.update(bad)

    @property
    def rejected(self) -> dict[str, int]:
        """How many samples could not be used, by reason."""
        return dict(Counter(self.bad.values()))

    def save(self) -> None:
        if is_main():
            self.store.put(CURVES, json.dumps(self.points).encode())
            self.store.put(
                REJECTED, json.dumps([[*place, reason] for place, reason in sorted(self.bad.items())]).encode()
            )

    def curves(self) -> dict[str, list[Point]]:
        """The points of each loss, by its name."""
        curves: dict[str, list[Point]] = {}
        for step, values in self.points:
            for name, value in values.items():
                if name.startswith(LOSS):
                    curves.setdefault(name.removeprefix(LOSS), []).append((step, value))
        return curves

    def losses(self) -> dict[str, float]:
        """The last value of each loss."""
        return {name: points[-1][1] for name, points in self.curves().items()}

    def alarms(self) -> tuple[Alarm, ...]:
        """The alarms that were raised."""
        raised = ((step, name) for step, values in self.points for name in values if name.startswith(ALARM))
        return tuple(Alarm(name=name.removeprefix(ALARM), step=step) for step, name in raised)


def read_kept(store: Store, key: str, parse: Any) -> list[Any]:
    """What an earlier attempt kept under a key; nothing, with a warning, where it cannot be read."""
    try:
        return parse(json.loads(store.get(key)))
    except MissingKeyError:
        return []
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        log.warning("%s/%s is passed over, so the report lacks what it held: %s", store.uri, key, e)
        return []


def as_points(values: Iterable[Any]) -> list[tuple[int, Values]]:
    return [(int(step), {str(name): float(value) for name, value in dict(found).items()}) for step, found in values]


def as_places(values: Iterable[Any]) -> list[tuple[Place, str]]:
    return [((int(shard), int(row)), str(reason)) for shard, row, reason in values]
