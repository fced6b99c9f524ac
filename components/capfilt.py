"""CapFilt: a caption for every web image, and of both texts those that match."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def capfilt(
    preset: str,
    overrides: list[str],
    store: str,
    revision: str,
    data: Input[Dataset],
    captioner: Input[Model],
    filter: Input[Model],
    kept: Output[Dataset],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Makes the data folder to pre-train on again: what was kept takes the place of the web pairs, all else stays."""
    from blip.runs.capfilt import capfilt
    from blip.runs.stages import of
    from components.show import show

    made = capfilt(preset, of("capfilt", overrides), store, revision, data.path, captioner.path, filter.path, kept.path, pictures.path)
    show(made, metrics, card)
