"""Fetch role: the captioner or the filter of CapFilt."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def fetch_role(role: str, source: str, bootstrap: str, preset: str, store: str, model_page: Output[HTML]) -> str:
    """Returns the URI of the model of a source, or of the one that wrote or chose the data of a bootstrap's model."""
    from blip.report.step_page import fetched_page
    from blip.runs.fetch_model import fetch_role
    from components.context import at_work

    with at_work("fetch-model", preset, [], store) as step:
        result = fetch_role(role, source, bootstrap, store=store, out=step.out)
        return step.finish(result, lambda made: fetched_page(made).html(), model_page, same=True)
