"""Fetch the model that downstream tasks start from."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def fetch_model(model: str, preset: str, store: str, page: Output[HTML]) -> str:
    """Returns the URI of a model of the registry, or of a folder."""
    from blip.report.step_page import fetched_page
    from blip.runs.downstream import fetch_champion
    from components.context import at_work

    with at_work("fetch-model", preset, [], store) as step:
        result = fetch_champion(model, out=step.out)
        return step.finish(result, lambda made: fetched_page(made).html(), page)
