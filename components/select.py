"""Select: selects among the texts that CapFilt scored, in seconds."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def select(preset: str, settings: list[str], store: str, scored: str, selection_page: Output[HTML]) -> str:
    """Returns the URI of the data folder to pre-train on again: a copy with the kept texts for the web pairs."""
    from blip.report.capfilt_figures import load_pictures
    from blip.report.capfilt_page import capfilt_html
    from blip.runs.select import PICTURES, select
    from components.context import at_work

    with at_work("select", preset, settings, store) as step:
        result = select(step.run, data=step.input("scored", scored), out=step.out)
        return step.finish(result, lambda made: capfilt_html(made, load_pictures(step.out / PICTURES)), selection_page)
