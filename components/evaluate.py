"""Evaluate: scores a model's retrieval and captioning on held-out images."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def evaluate(preset: str, settings: list[str], store: str, data: str, model: str, scores_page: Output[HTML]) -> str:
    """Returns the URI of the model's scores on the test split, with every caption."""
    from blip.launch.placement import workers
    from blip.report.step_page import evaluation_page
    from blip.runs.evaluate import evaluate
    from components.context import at_work

    with at_work("evaluate", preset, settings, store) as step:
        folder, pods = step.input("data", data), workers(step.resources.placement, "evaluate")
        result = evaluate(step.run, data=folder, model=step.input("model", model), out=step.out, workers=pods)
        return step.finish(result, lambda made: evaluation_page(step.name, made, folder).html(), scores_page)
