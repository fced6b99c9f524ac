"""Chart layout in pixels; the pages' templates draw and style it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from blip.results import Point


class Tick(NamedTuple):
    at: float
    label: str


class Line(NamedTuple):
    name: str
    path: str
    last: str
    """The last value, formatted."""


class Block(NamedTuple):
    """A part of a stacked bar: `kind` is its category, `title` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass
class Chart:
    width: float
    height: float
    x: list[Tick] = field(default_factory=list)
    y: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    mark: Tick | None = None
    """A line across the chart, such as a threshold."""


def ticks(low: float, high: float, number: int) -> list[float]:
    """Returns about `number` round values from `low` to `high`."""
    if high <= low:
        return [low]
    raw = (high - low) / number
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if raw <= power * m)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step * (1 + 1e-9)) + 1)]


def short(value: float) -> str:
    """Formats a number for an axis: 0.5, 12, 3k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def thinned(points: Sequence[Point], most: int = 150) -> list[Point]:
    """Reduces a curve to at most `most` points by averaging runs, which also smooths it; drops non-finite values."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    size = max(1, math.ceil(len(finite) / most))
    runs = (finite[i : i + size] for i in range(0, len(finite), size))
    return [(round(sum(s for s, _ in run) / len(run)), sum(v for _, v in run) / len(run)) for run in runs]


def line_chart(curves: Mapping[str, Sequence[Point]], width: float = 310, height: float = 170) -> Chart:
    """Lays out one line per curve, with common axes of step and value."""
    thin = {name: thinned(points) for name, points in curves.items()}
    steps = [step for points in thin.values() for step, _ in points] or [0]
    values = [value for points in thin.values() for _, value in points] or [0.0]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin

    def x(step: float) -> float:
        return round((step - first) / max(last - first, 1) * width, 1)

    def y(value: float) -> float:
        return round((high - value) / (high - low) * height, 1)

    chart = Chart(width, height)
    chart.x = [Tick(x(s), short(s)) for s in ticks(first, last, 4)]
    chart.y = [Tick(y(v), short(v)) for v in ticks(low, high, 4)]
    for name, points in thin.items():
        path = "M" + "L".join(f"{x(step)},{y(value)}" for step, value in points) if points else ""
        chart.lines.append(Line(name, path, f"{points[-1][1]:.3g}" if points else ""))
    return chart


def histogram(
    counts: Mapping[str, Sequence[int]], mark: float | None = None, width: float = 460, height: float = 170
) -> Chart:
    """Lays out bars over 0 to 1, stacked in the order of `counts`; `mark` is a threshold."""
    bins = max(map(len, counts.values()))
    totals = [sum(bars) for bars in zip(*counts.values(), strict=True)]
    top = max(totals, default=0) or 1
    chart = Chart(width, height, mark=None if mark is None else Tick(mark * width, f"{mark:g}"))
    chart.x = [Tick(v * width, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]
    chart.y = [Tick(round((1 - v / top) * height, 1), short(v)) for v in ticks(0, top, 4)]
    for i in range(bins):
        base = height
        for kind, bars in counts.items():
            tall = round(bars[i] / top * height, 2)
            base -= tall
            if tall:
                title = f"{bars[i]:,} {kind}, score {i / bins:.2f} to {(i + 1) / bins:.2f}"
                chart.blocks.append(
                    Block(i * width / bins + 0.75, round(base, 2), width / bins - 1.5, tall, kind, title)
                )
    return chart


class Box(NamedTuple):
    """A node of a graph; `share` is its duration relative to the longest, 0 to 1."""

    name: str
    at: tuple[float, float]
    seconds: float | None
    share: float
    alarm: bool


@dataclass
class Graph:
    width: float
    height: float
    box: tuple[float, float]
    boxes: list[Box]
    edges: list[str]


def graph(
    nodes: Sequence[tuple[str, Sequence[str], float | None, bool]],
    box: tuple[float, float] = (116, 46),
    gap: float = 20,
) -> Graph:
    """Lays out nodes (name, parents, seconds, alarm) in topological order, each one column after its last parent."""
    column: dict[str, int] = {}
    for name, parents, _, _ in nodes:
        column[name] = max((column[p] + 1 for p in parents), default=0)
    rows: dict[int, list[str]] = {}
    for name, at in column.items():
        rows.setdefault(at, []).append(name)
    (wide, tall), most = box, max(map(len, rows.values()), default=0)
    place = {}
    for at, names in rows.items():
        top = (most - len(names)) * (tall + 12) / 2
        place |= {name: (at * (wide + gap), top + i * (tall + 12)) for i, name in enumerate(names)}
    longest = max((seconds or 0 for _, _, seconds, _ in nodes), default=0) or 1
    boxes = [Box(name, place[name], seconds, (seconds or 0) / longest, alarm) for name, _, seconds, alarm in nodes]
    edges = []
    for name, parents, _, _ in nodes:
        for parent in parents:
            (x0, y0), (x1, y1) = place[parent], place[name]
            between = (place[other] for at in range(column[parent] + 1, column[name]) for other in rows[at])
            if not any(abs(y - y0) < tall for _, y in between):  # skips edges through other boxes
                x0, x2, y0, y1 = x0 + wide, x1 - gap, y0 + tall / 2, y1 + tall / 2
                edges.append(f"M{x0},{y0}L{x2},{y0}C{x2 + gap / 2},{y0} {x1 - gap / 2},{y1} {x1},{y1}")
    return Graph(len(rows) * (wide + gap) - gap, most * (tall + 12) - 12, box, boxes, edges)
