"""Cache features: the frozen image encoder's features of a stage's images, where its settings ask for them."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def cache_features(
    stage: str, preset: str, settings: list[str], store: str, data: str, frozen: str, page: Output[HTML]
) -> str:
    """Returns the URI of the data on which the stage trains: features of images, or the images themselves."""
    from blip.report.step_page import features_page
    from blip.runs.cache_features import features_or_images
    from components.context import at_work

    with at_work(stage, preset, settings, store) as step:
        folders = {"data": step.input("data", data), "frozen": step.input("frozen", frozen)}
        result = features_or_images(step.run, stage, **folders, out=step.out)
        return step.finish(result, lambda made: features_page(made).html(), page)
