"""Ends a run that exceeds its budget."""

from blip.budget import Budget, BudgetError
from blip.distributed import all_gather_objects, is_main
from blip.training.engine import StepReport
from blip.training.loop import Hook


def stop_when_spent(budget: Budget) -> Hook:
    """Returns a hook that raises BudgetError if the run exceeds its budget.

    Raises on every process after the same step. Call it after a save.
    """

    def check_budget(report: StepReport) -> None:
        reason = ""
        if is_main():
            try:
                budget.check()
            except BudgetError as error:
                reason = str(error)
        if (reason := all_gather_objects(reason)[0]) and not report.last:  # a finished run keeps its result
            raise BudgetError(reason)

    return check_budget
