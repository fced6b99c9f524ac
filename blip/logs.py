"""What a person sees while it works: this project's words and one progress bar, and no library's."""

import io
import json
import locale
import logging
import os
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import SupportsFloat

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from blip.redaction import redact

log = logging.getLogger("blip")
console = Console(stderr=True)

ALARM = "alarm"
"""The key of a line of progress that warns."""
LIVE_SECONDS = 0.25
WINDOW_SECONDS = 20.0
"""The rate is that of this last while, so that it follows a change and does not flicker."""

NOISY = ["DeepSpeed", "alembic", "mlflow", "torch", "torch.distributed.run", "transformers"]
"""Loggers with a level or a handler of their own; the others follow the root."""

SWITCHES = {
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def use_utf8() -> None:
    """Puts this process and those that it starts into Python's UTF-8 mode, the default from 3.15 on: a locale decides about no file."""
    if locale.getencoding().lower() != "utf-8" and not sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that has no sign for a character shows its number
            stream.reconfigure(errors="backslashreplace")


def is_speaker() -> bool:
    """Whether this process is the one of its launch that reports; the launcher says so before any group exists."""
    return os.environ.get("RANK", "0") == "0"


def quiet() -> None:
    """Lets only this project speak, here and in child processes; `BLIP_LOG=debug` lets everybody.

    Call it before the libraries are imported: some read their switches then. Errors of libraries stay visible.
    No password of a URL is written, neither in a log nor in the traceback that ends the process.
    """
    sys.excepthook = print_redacted
    debug = os.environ.get("BLIP_LOG", "").lower() == "debug"
    log.handlers = [handler()]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.INFO if is_speaker() else logging.ERROR)
    if debug:
        return
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    for name in NOISY:
        noisy = logging.getLogger(name)
        noisy.setLevel(logging.ERROR)
        noisy.addFilter(only_errors)  # DeepSpeed sets its own level when it is imported; a filter stays


def only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def handler() -> logging.Handler:
    if console.is_terminal:
        rich = RichHandler(console=console, show_time=False, show_path=False)
        rich.setFormatter(RedactingFormatter("%(message)s"))
        return rich
    plain = logging.StreamHandler()
    plain.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    return plain


class RedactingFormatter(logging.Formatter):
    """Formats a record without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback that ends the process without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


@dataclass(frozen=True)
class Record:
    """How far something is: `rate` in units a second, `eta` and `seconds` (spent so far) in seconds, losses by name."""

    what: str
    unit: str
    done: int
    total: int
    rate: float
    eta: float
    seconds: float
    losses: dict[str, float] = field(default_factory=dict)
    last: bool = False

    @property
    def numbers(self) -> str:
        return " ".join(f"{name}={value:.4g}" for name, value in self.losses.items())

    def line(self) -> str:
        """One line for a log, in a form that stays."""
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        time = f"in {clock(self.seconds)}" if self.last else f"ETA {clock(self.eta)}"
        return (
            f"{self.what} {self.done}/{self.total} {self.unit} {share} {self.rate:.1f}/s {time} {self.numbers}".rstrip()
        )

    def figures(self) -> str:
        """What stands beside a moving bar, in Rich's markup."""
        return f"{self.done:,}/{self.total:,} {self.unit}  {self.rate:,.0f}/s  ETA {clock(self.eta)}  [dim]{self.numbers}[/]"


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


Show = Callable[[Record], None]


class Bar:
    """Counts what is done and shows it, a few times a second at most."""

    def __init__(self, total: int, what: str, unit: str, done: int, show: Show):
        self.total, self.what, self.unit, self.done, self.show = total, what, unit, done, show
        self.losses: Mapping[str, SupportsFloat] = {}
        self.began = self.shown = time.monotonic()
        self.start = done
        self.recent = deque([(self.began, done)])

    def advance(self, n: int = 1, losses: Mapping[str, SupportsFloat] | None = None) -> None:
        """Adds `n` units; losses may be tensors: they are read only when they are shown, for reading makes a device wait."""
        self.done += n
        self.losses = losses or self.losses
        now = time.monotonic()
        if now - self.shown >= LIVE_SECONDS:
            self.shown = now
            self.recent.append((now, self.done))
            while now - self.recent[0][0] > WINDOW_SECONDS:
                self.recent.popleft()
            self.show(self.record(now))

    def record(self, now: float, last: bool = False) -> Record:
        then, before = (self.began, self.start) if last else self.recent[0]
        rate = (self.done - before) / max(now - then, 1e-9)
        eta = max(self.total - self.done, 0) / rate if rate else 0.0
        losses = {name: float(value) for name, value in self.losses.items()}
        return Record(self.what, self.unit, self.done, self.total, rate, eta, now - self.began, losses, last)


@contextmanager
def progress(total: int, what: str, unit: str = "images", done: int = 0) -> Iterator[Bar]:
    """A bar over `total` units of which `done` are behind us: live on a terminal, a line every while in a log, silent on other ranks.

    `BLIP_PROGRESS` names a file to which every record and alarm goes as a line of JSON, for `follow` in another process;
    `BLIP_PROGRESS_SECONDS` is the while between two lines of a log (10).
    """
    with ExitStack() as stack:
        bar = Bar(total, what, unit, done, show=stack.enter_context(view()) if is_speaker() else lambda _: None)
        yield bar
        bar.show(bar.record(time.monotonic(), last=True))


@contextmanager
def view() -> Iterator[Show]:
    """Where this process shows its records."""
    path = os.environ.get("BLIP_PROGRESS")
    if path:
        with open(path, "a", buffering=1) as file, in_lines(log.info) as show_line:

            def write(record: Record) -> None:
                file.write(json.dumps(asdict(record)) + "\n")
                show_line(record)

            yield write
    else:
        with live(console) if console.is_terminal else in_lines(log.info) as show:
            yield show


def alarm(message: str) -> None:
    """Warns in this process's log and, where another process follows its progress, on that one's screen."""
    log.warning("%s", message)
    if path := os.environ.get("BLIP_PROGRESS"):
        with open(path, "a") as file:
            file.write(json.dumps({ALARM: message}) + "\n")


@contextmanager
def in_lines(say: Callable[[str], object]) -> Iterator[Show]:
    """Says a record as one line now and then."""
    interval = float(os.environ.get("BLIP_PROGRESS_SECONDS", "10"))
    shown = time.monotonic()

    def show(record: Record) -> None:
        nonlocal shown
        if record.last or time.monotonic() - shown >= interval:
            shown = time.monotonic()
            say(record.line())

    yield show


@contextmanager
def live(screen: Console) -> Iterator[Show]:
    """Shows what runs as one moving bar, and leaves a line of what is done."""
    figures = TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    tasks: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(24), figures, console=screen, transient=True) as bars:

        def show(record: Record) -> None:
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


Say = Callable[[str], None]


@contextmanager
def follow(path: str | Path, screen: Console = console) -> Iterator[Say]:
    """Shows the records that other processes write to `path` (their `BLIP_PROGRESS`), and gives what prints a line in between.

    A line said comes after all that was recorded before it. Text may carry Rich's markup.
    """
    path, over, turn, rest = Path(path), Event(), Lock(), ""
    path.write_text("")
    with (
        path.open() as file,
        live(screen) if screen.is_terminal else in_lines(partial(screen.print, highlight=False)) as show,
    ):

        def catch_up() -> None:
            nonlocal rest
            with turn:
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    told = json.loads(line)
                    if ALARM in told:
                        screen.print(f"[yellow]! {escape(told[ALARM])}[/]", highlight=False)
                    else:
                        show(Record(**told))

        def watch() -> None:
            while not over.wait(LIVE_SECONDS):
                catch_up()

        def say(text: str) -> None:
            catch_up()
            screen.print(text, highlight=False)

        reader = Thread(target=watch, daemon=True)
        reader.start()
        try:
            yield say
        finally:
            over.set()
            reader.join()
            catch_up()
