"""CapFilt: a caption for every web image, and of both texts how well they match."""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output

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
    scored: Output[Dataset],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Makes the folder that texts are selected from: the scores lie in the store, in place of the web pairs, all else stays."""
    from blip.launch.placement import placement, workers
    from blip.runs.capfilt import capfilt
    from blip.runs.stages import of
    from components.revision import revision
    from components.show import show

    overrides, pods = of("capfilt", settings, max_gpu_hours), workers(placement(jobs, image), "capfilt")
    models = captioner.path, filter.path
    made = capfilt(preset, overrides, store, revision(), data.path, *models, scored.path, workers=pods)
    show(made, metrics, card)
