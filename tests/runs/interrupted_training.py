"""`blip train` that receives Ctrl-C at an exact moment: `interrupted_training.py MOMENT STEP train STAGE OPTIONS`.

The moment is `after` (at the end of that step), or `waiting` (while the process waits for the data of the next one).
"""

import signal
import sys

from blip.cli import main
from blip.data.loader import Loader
from blip.runs import train
from blip.training.engine import StepReport
from blip.training.meter import Meter

moment, step = sys.argv.pop(1), int(sys.argv.pop(1))


class InterruptingMeter(Meter):
    def __call__(self, report: StepReport) -> None:
        super().__call__(report)
        if report.step == step:
            signal.raise_signal(signal.SIGINT)


class InterruptingLoader(Loader):
    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == step * self.accumulation:
                signal.raise_signal(signal.SIGINT)
            yield batch


if __name__ == "__main__":
    match moment:
        case "after":
            train.Meter = InterruptingMeter
        case "waiting":
            train.Loader = InterruptingLoader
    main()
