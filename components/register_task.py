"""Register a model that was fine-tuned for a downstream task."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def register_task(
    name: str,
    task: str,
    preset: str,
    settings: list[str],
    store: str,
    model: str,
    after: str,
    decision_page: Output[HTML],
) -> str:
    """Returns the URI of the decision: the model is the champion of its task if it beats the former one."""
    from blip.report.step_page import gate_page
    from blip.results import EvaluationResult
    from blip.runs.downstream import item_of, register_task
    from blip.runs.evaluate import METRICS
    from blip.runs.outputs import StepOutput
    from components.context import at_work

    item = item_of(task, StepOutput.load(model).input("init").uri)
    with at_work("register", preset, settings, store, item) as step:
        file = step.input("after", after) / METRICS
        result = register_task(step.run, name, item, model=step.input("model", model), after=file)
        scores = EvaluationResult.load(file)
        return step.finish(result, lambda made: gate_page(made, None, scores).html(), decision_page)
