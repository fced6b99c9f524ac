"""Stack dumps of every process when a collective hangs."""

import faulthandler
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Self

from blip.distributed import rank


class Watchdog:
    """Prints this process's rank and the stacks of its threads once it has not been fed for `seconds`; a context.

    Its timeout is the collective's, so every rank dumps its stacks before the collective fails.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.place, self.since = "", time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="watchdog", daemon=True)

    def feed(self, place: str) -> None:
        """Restarts the timer; `place` names the current position of the process."""
        self.place, self.since = place, time.monotonic()

    def run(self) -> None:
        told = ""
        while not self.over.wait(min(1.0, self.seconds / 10)):
            place, since = self.place, self.since
            if place != told and time.monotonic() - since > self.seconds:
                told = place
                self.tell(f"\nrank {rank()} has been in {place} for {self.seconds:.0f} s:\n")

    def tell(self, what: str) -> None:
        stderr = sys.__stderr__ or sys.stderr
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            stderr.write(what + file.read())  # in one piece: others tell theirs at the same moment
            stderr.flush()

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
