"""CapFilt: captions every web image and scores how well each text matches."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def capfilt(
    preset: str, settings: list[str], store: str, data: str, captioner: str, filter: str, captions_page: Output[HTML]
) -> str:
    """Returns the URI of a copy of the data folder with a reference to the scores in place of the web pairs."""
    from blip.launch.placement import workers
    from blip.report.step_page import capfilt_page
    from blip.runs.capfilt import capfilt
    from components.context import at_work

    with at_work("capfilt", preset, settings, store) as step:
        models = {"captioner": step.input("captioner", captioner), "filter": step.input("filter", filter)}
        pods = workers(step.resources.placement, "capfilt")
        result = capfilt(step.run, data=step.input("data", data), **models, out=step.out, workers=pods)
        return step.finish(result, lambda made: capfilt_page(made).html(), captions_page)
