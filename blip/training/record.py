"""The record of a run: loss curves, alarms and rejected samples, over all attempts."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from blip.data.reader import ShardRow
from blip.distributed import is_main
from blip.results import Alarm, Point
from blip.storage import MissingKeyError, Store
from blip.tracking import Run

log = logging.getLogger(__name__)

CURVES, REJECTED = "curves.json", "rejected.json"
LOSS, SCORE, ALARM = "train/", "score/", "alarm/"
"""Prefixes of the names of losses, of scores that are measured while training, and of alarms."""
Values = dict[str, float]


class RunRecord:
    """The curves of a run, over all its attempts.

    Sent to the run's tracker and stored beside its checkpoints. A stored record that cannot be read costs curve points
    only; the weights do not depend on it.
    """

    def __init__(self, run: Run, store: Store, step: int):
        """Loads the record up to `step`, from which the run resumes; later points will be recorded again."""
        self.run, self.store = run, store
        self.points: list[tuple[int, Values]] = []
        self.bad: dict[ShardRow, str] = {}
        if step:
            self.points = [point for point in read_kept(store, CURVES, as_points) if point[0] <= step]
            self.bad = dict(read_kept(store, REJECTED, as_places))

    def __call__(self, step: int, values: Values) -> None:
        self.run.metrics(values, step)
        self.points.append((step, values))

    def reject(self, bad: Mapping[ShardRow, str]) -> None:
        """Records rejected samples by shard and row; each sample counts once."""
        self.bad.update(bad)

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rejected samples by reason."""
        return dict(Counter(self.bad.values()))

    def save(self) -> None:
        if is_main():
            self.store.put(CURVES, json.dumps(self.points).encode())
            self.store.put(
                REJECTED, json.dumps([[*place, reason] for place, reason in sorted(self.bad.items())]).encode()
            )

    def curves(self, prefix: str = LOSS) -> dict[str, list[Point]]:
        """Returns the points of each loss by name, or of what has another prefix."""
        curves: dict[str, list[Point]] = {}
        for step, values in self.points:
            for name, value in values.items():
                if name.startswith(prefix):
                    curves.setdefault(name.removeprefix(prefix), []).append((step, value))
        return curves

    def losses(self) -> dict[str, float]:
        """Returns the last value of each loss by name."""
        return {name: points[-1][1] for name, points in self.curves().items()}

    def alarms(self) -> tuple[Alarm, ...]:
        """Returns the alarms raised so far."""
        raised = ((step, name) for step, values in self.points for name in values if name.startswith(ALARM))
        return tuple(Alarm(name=name.removeprefix(ALARM), step=step) for step, name in raised)


def read_kept(store: Store, key: str, parse: Any) -> list[Any]:
    """Returns the parsed values that an earlier attempt stored under a key.

    Returns an empty list if the key is missing, or, with a warning, if its content cannot be parsed.
    """
    try:
        return parse(json.loads(store.get(key)))
    except MissingKeyError:
        return []
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        log.warning("skipped %s/%s; its points are missing from the report: %s", store.uri, key, e)
        return []


def as_points(values: Iterable[Any]) -> list[tuple[int, Values]]:
    return [(int(step), {str(name): float(value) for name, value in dict(found).items()}) for step, found in values]


def as_places(values: Iterable[Any]) -> list[tuple[ShardRow, str]]:
    return [((int(shard), int(row)), str(reason)) for shard, row, reason in values]
