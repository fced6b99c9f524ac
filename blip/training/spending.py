"""Stops a training that has exceeded its budget."""

from blip.budget import Budget, BudgetError
from blip.distributed import all_gather_objects, is_main
from blip.training.engine import StepReport
from blip.training.loop import Hook


def stop_when_spent(budget: Budget) -> Hook:
    """A hook that raises BudgetError, on every process after the same step, once the run has spent what it may; call it
    after a save.
    """

    def check_budget(report: StepReport) -> None:
        reason = ""
        if is_main():
            try:
                budget.check()
            except BudgetError as error:
                reason = str(error)
        if (reason := all_gather_objects(reason)[0]) and not report.last:  # what is finished is worth keeping
            raise BudgetError(reason)

    return check_budget
