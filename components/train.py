"""Train: one stage, whichever it is; stages differ in their configuration alone."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def train(
    stage: str,
    preset: str,
    settings: list[str],
    store: str,
    max_gpu_hours: float,
    jobs: list[str],
    image: str,
    data: Input[Dataset],
    model: Output[Model],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
    init: Input[Model] = None,  # pyright: ignore[reportArgumentType]
):
    """Trains from the initial model, or from scratch; checkpoints go to the store, the finished model is the output."""
    from blip.launch.placement import placement
    from blip.report import step_page
    from blip.runs.stages import of
    from blip.runs.train import train_where_placed
    from components.revision import revision
    from components.show import show

    overrides = of(stage, settings, max_gpu_hours)
    places = store, revision(), data.path, model.path, init and init.path
    made = train_where_placed(placement(jobs, image), stage, preset, overrides, *places)
    show(made, metrics, card)
    step_page.training(stage, made).save(pictures.path)
