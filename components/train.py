"""Train: one stage, whichever it is; stages differ in their configuration alone."""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def train(
    stage: str,
    preset: str,
    overrides: list[str],
    store: str,
    revision: str,
    data: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
    card: Output[Markdown],
    init: Input[Model] = None,  # pyright: ignore[reportArgumentType]
):
    """Trains from the initial model, or from scratch; checkpoints go to the store, the finished model is the output."""
    from blip.runs.stages import of
    from blip.runs.train import train
    from components.show import show

    show(train(stage, preset, of(stage, overrides), store, revision, data.path, model.path, init and init.path), metrics, card)
