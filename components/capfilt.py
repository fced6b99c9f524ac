"""CapFilt: captions every web image and scores how well each text matches."""

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
    """Writes a copy of the data folder with a reference to the scores in the store in place of the web pairs."""
    from blip.launch.placement import placement, workers
    from blip.runs.capfilt import capfilt
    from components.context import stage_context
    from components.show import show

    run, pods = (
        stage_context("capfilt", preset, settings, store, max_gpu_hours),
        workers(placement(jobs, image), "capfilt"),
    )
    models = {"captioner": captioner.path, "filter": filter.path}
    show(capfilt(run, data=data.path, **models, out=scored.path, workers=pods), metrics, card)
