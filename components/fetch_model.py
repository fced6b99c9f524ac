"""Fetch the model that downstream tasks start from."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def fetch_model(model: str, task: str, preset: str, store: str, model_page: Output[HTML]) -> str:
    """Returns the URI of the model that a task starts from: any source of a BLIP, or its bootstrap's first model."""
    from blip.report.step_page import fetched_page
    from blip.runs.fetch_model import fetch_champion
    from components.context import at_work

    with at_work("fetch-model", preset, [], store, task) as step:
        result = fetch_champion(model, task, store=store, out=step.out)
        return step.finish(result, lambda made: fetched_page(made).html(), model_page, same=True)
