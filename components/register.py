"""Register: the gate in front of the model registry."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def register(
    name: str,
    preset: str,
    settings: list[str],
    store: str,
    model: str,
    before: str,
    after: str,
    decision_page: Output[HTML],
    variant: str = "",
) -> str:
    """Returns the URI of the decision: the champion is this model if it beats the first one and the former champion."""
    from blip.report.step_page import gate_page
    from blip.results import EvaluationResult
    from blip.runs.evaluate import METRICS
    from blip.runs.register import register
    from components.context import at_work

    with at_work("register", preset, settings, store) as step:
        files = {"before": step.input("before", before) / METRICS, "after": step.input("after", after) / METRICS}
        registered = f"{name}-{variant}" if variant else name
        result = register(step.run, registered, model=step.input("model", model), **files)
        scores = [EvaluationResult.load(file) for file in files.values()]
        return step.finish(result, lambda made: gate_page(made, *scores).html(), decision_page)
