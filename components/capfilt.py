"""CapFilt: a caption for every web image, and of both texts those that match."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def capfilt(
    preset: str,
    settings: list[str],
    store: str,
    max_gpu_hours: float,
    jobs: list[str],
    image: str,
    data: Input[Dataset],
    captioner: Input[Model],
    filter: Input[Model],
    kept: Output[Dataset],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Makes the data folder to pre-train on again: what was kept takes the place of the web pairs, all else stays."""
    from blip.launch.placement import placement, workers
    from blip.runs.capfilt import capfilt
    from blip.runs.stages import of
    from components.revision import revision
    from components.show import show

    overrides, pods = of("capfilt", settings, max_gpu_hours), workers(placement(jobs, image), "capfilt")
    models = captioner.path, filter.path
    made = capfilt(preset, overrides, store, revision(), data.path, *models, kept.path, pictures.path, workers=pods)
    show(made, metrics, card)
