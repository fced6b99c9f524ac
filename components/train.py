"""Train: trains one stage; stages differ only in their configuration."""

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
    """Trains from the initial model or from scratch, with checkpoints in the store."""
    from blip.launch.placement import placement
    from blip.report.step_page import train_page
    from blip.runs.train import train
    from components.context import stage_context
    from components.show import show

    run, placed = stage_context(stage, preset, settings, store, max_gpu_hours), placement(jobs, image)
    result = train(run, stage, data=data.path, out=model.path, init=init and init.path, placed=placed)
    show(result, metrics, card)
    train_page(stage, result).save(pictures.path)
