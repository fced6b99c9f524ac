"""Make frozen: the small frozen models of BLIP-2, for a world that we make."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def make_frozen(preset: str, settings: list[str], store: str, frozen_models_page: Output[HTML]) -> str:
    """Returns the URI of the models' places in the store; there are none where the stages name others' models."""
    from blip.report.step_page import frozen_page
    from blip.runs.make_frozen import make_frozen
    from components.context import at_work

    with at_work("frozen", preset, settings, store) as step:
        result = make_frozen(step.run, out=step.out)
        return step.finish(result, lambda made: frozen_page(made).html(), frozen_models_page)
