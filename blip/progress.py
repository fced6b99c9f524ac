"""Progress of a long operation: a live bar on a terminal, lines in a log, records for a parent process."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import SupportsFloat

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from blip.logs import console, is_reporting, log

ALARM = "alarm"
"""The key of a line that holds an alarm rather than a record."""
LIVE_SECONDS = 0.25
"""Seconds between two updates of a bar."""
WINDOW_SECONDS = 20.0
"""Seconds over which the rate is averaged: it follows a change without flicker."""


@dataclass(frozen=True)
class ProgressRecord:
    """The state of an operation at one time."""

    what: str
    unit: str
    done: int
    total: int
    rate: float
    """Units per second."""
    eta: float
    """Seconds until the end."""
    seconds: float
    """Seconds since the start."""
    losses: dict[str, float] = field(default_factory=dict)
    last: bool = False

    @property
    def loss_text(self) -> str:
        return " ".join(f"{name}={value:.4g}" for name, value in self.losses.items())

    def line(self) -> str:
        """Returns the record as a line of a log."""
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        time = f"in {clock(self.seconds)}" if self.last else f"ETA {clock(self.eta)}"
        counts = f"{self.what} {self.done}/{self.total} {self.unit} {share} {speed(self.rate)}"
        return f"{counts} {time} {self.loss_text}".rstrip()

    def figures(self) -> str:
        """Returns the text beside a bar, in Rich's markup."""
        counts = f"{self.done:,}/{self.total:,} {self.unit}  {speed(self.rate)}"
        return f"{counts}  ETA {clock(self.eta)}  [dim]{self.loss_text}[/]"


def speed(rate: float) -> str:
    """Returns units per second as text, which tells slow work from none."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


Show = Callable[[ProgressRecord], None]


class ProgressBar:
    """Counts units and shows the count, at most every LIVE_SECONDS."""

    def __init__(self, total: int, what: str, unit: str, done: int, show: Show, patience: float):
        self.total, self.what, self.unit, self.done, self.show = total, what, unit, done, show
        self.patience = patience
        self.losses: Mapping[str, SupportsFloat] = {}
        self.began = self.shown = time.monotonic()
        self.start = done
        self.recent = deque([(self.began, done)])

    def advance(self, n: int = 1, losses: Mapping[str, SupportsFloat] | None = None) -> None:
        """Adds `n` units. Losses may be tensors: they are read only when shown, since this synchronises the device."""
        self.done += n
        self.losses = losses or self.losses
        now = time.monotonic()
        if now - self.shown >= LIVE_SECONDS and now - self.began >= self.patience:
            self.shown = now
            self.recent.append((now, self.done))
            while len(self.recent) > 2 and now - self.recent[1][0] >= WINDOW_SECONDS:
                self.recent.popleft()  # one before the window stays: a step may take longer than the window
            self.show(self.record(now))

    def end(self) -> None:
        """Shows the last count, unless the operation ended within its first seconds of patience."""
        now = time.monotonic()
        if now - self.began >= self.patience:
            self.show(self.record(now, last=True))

    def record(self, now: float, last: bool = False) -> ProgressRecord:
        then, before = (self.began, self.start) if last else self.recent[0]
        rate = (self.done - before) / max(now - then, 1e-9)
        eta = max(self.total - self.done, 0) / rate if rate else 0.0
        losses = {name: float(value) for name, value in self.losses.items()}
        return ProgressRecord(self.what, self.unit, self.done, self.total, rate, eta, now - self.began, losses, last)


@contextmanager
def progress(
    total: int, what: str, unit: str = "images", done: int = 0, patience: float = 0.0
) -> Iterator[ProgressBar]:
    """Yields a bar over `total` units, of which `done` are finished; ranks other than 0 show nothing.

    Nothing is shown in the first `patience` seconds, nor of an operation that ends in them.

    A terminal shows a live bar, a log gets a line every `BLIP_PROGRESS_SECONDS` (10). If `BLIP_PROGRESS` is the path
    of a file, every record and alarm is appended to it as a line of JSON, which `follow_progress` reads.
    """
    with ExitStack() as stack:
        show = stack.enter_context(view()) if is_reporting() else ignore
        bar = ProgressBar(total, what, unit, done, show, patience)
        yield bar
        bar.end()


def ignore(record: ProgressRecord) -> None:
    """Shows nothing."""


@contextmanager
def view() -> Iterator[Show]:
    """Yields the function that shows this process's records."""
    path = os.environ.get("BLIP_PROGRESS")
    if path:
        with open(path, "a", buffering=1, encoding="utf-8") as file, in_lines(log.info) as show_line:

            def write(record: ProgressRecord) -> None:
                file.write(json.dumps(asdict(record)) + "\n")
                show_line(record)

            yield write
    else:
        with live(console) if console.is_terminal and log.isEnabledFor(logging.INFO) else in_lines(log.info) as show:
            yield show


def alarm(message: str) -> None:
    """Logs a warning, and shows it in the process that follows this one's progress, if there is one."""
    log.warning("%s", message)
    if path := os.environ.get("BLIP_PROGRESS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({ALARM: message}) + "\n")


@contextmanager
def in_lines(print_line: Callable[[str], object]) -> Iterator[Show]:
    """Yields a function that prints the last record, and one record per `BLIP_PROGRESS_SECONDS`, as a line."""
    interval = float(os.environ.get("BLIP_PROGRESS_SECONDS", "10"))
    shown = time.monotonic()

    def show(record: ProgressRecord) -> None:
        nonlocal shown
        if record.last or time.monotonic() - shown >= interval:
            shown = time.monotonic()
            print_line(record.line())

    yield show


@contextmanager
def live(screen: Console) -> Iterator[Show]:
    """Yields a function that shows running operations as live bars, and prints a line for each that ends."""
    figures = TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    tasks: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(24), figures, console=screen, transient=True) as bars:

        def show(record: ProgressRecord) -> None:
            if record.last:
                if record.what in tasks:
                    bars.remove_task(tasks.pop(record.what))
                    bars.refresh()
                screen.print(f"[dim]  {record.line()}[/]", highlight=False)
                return
            if record.what not in tasks:
                tasks[record.what] = bars.add_task(record.what, figures="")
            bars.update(tasks[record.what], completed=record.done, total=record.total, figures=record.figures())

        yield show


PrintLine = Callable[[str], None]


@contextmanager
def follow_progress(path: str | Path, screen: Console = console) -> Iterator[PrintLine]:
    """Shows the records that other processes append to `path` (their `BLIP_PROGRESS`).

    Yields a function that prints a line, in Rich's markup, after all records that precede it.
    """
    path, over, turn, rest = Path(path), Event(), Lock(), ""
    path.write_text("", encoding="utf-8")
    lines_or_bars = live(screen) if screen.is_terminal else in_lines(partial(screen.print, highlight=False))
    with path.open(encoding="utf-8") as file, lines_or_bars as show:

        def catch_up() -> None:
            nonlocal rest
            with turn:
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    values = json.loads(line)
                    if ALARM in values:
                        screen.print(f"[yellow]! {escape(values[ALARM])}[/]", highlight=False)
                    else:
                        show(ProgressRecord(**values))

        def watch() -> None:
            while not over.wait(LIVE_SECONDS):
                catch_up()

        def print_line(text: str) -> None:
            catch_up()
            screen.print(text, highlight=False)

        reader = Thread(target=watch, daemon=True)
        reader.start()
        try:
            yield print_line
        finally:
            over.set()
            reader.join()
            catch_up()
