"""Logging: this project's messages and errors of libraries, without secrets; other messages of libraries are hidden."""

import io
import locale
import logging
import os
import sys
import traceback
import warnings
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler

from blip.redaction import redact

log = logging.getLogger("blip")
console = Console(stderr=True)

NOISY = ["DeepSpeed", "alembic", "mlflow", "torch", "torch.distributed.run", "transformers"]
"""Loggers with their own level or handler; the others inherit from the root logger."""

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
"""Variables that make libraries log less and send no telemetry."""


def use_utf8() -> None:
    """Turns on Python's UTF-8 mode for this process and its children, so that files do not depend on the locale.

    The mode is the default from Python 3.15 on. Restarts this process if necessary.
    """
    if locale.getencoding().lower() != "utf-8" and not sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that cannot show a character shows its escape
            stream.reconfigure(errors="backslashreplace")


def is_reporting() -> bool:
    """Whether this process reports for its launch: it is rank 0, by the launcher's variable."""
    return os.environ.get("RANK", "0") == "0"


def quiet() -> None:
    """Hides messages of libraries below errors, in this process and its children, unless `BLIP_LOG=debug`.

    `BLIP_LOG=quiet` hides this project's messages and progress too, but for warnings and errors.
    Must be called before the libraries are imported, since some read their variables then. Secrets are removed from
    log messages and from the traceback that ends the process.
    """
    sys.excepthook = print_redacted
    wanted = os.environ.get("BLIP_LOG", "").lower()
    log.handlers = [log_handler()]
    log.propagate = False
    if wanted == "debug":
        log.setLevel(logging.DEBUG)
        return
    told = logging.WARNING if wanted == "quiet" else logging.INFO
    log.setLevel(told if is_reporting() else logging.ERROR)
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    for name in NOISY:
        noisy = logging.getLogger(name)
        noisy.setLevel(logging.ERROR)
        noisy.addFilter(only_errors)  # DeepSpeed sets its level at import, but keeps filters


def only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def log_handler() -> logging.Handler:
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
