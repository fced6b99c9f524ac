"""Train: trains one stage; stages differ only in their configuration."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def train(
    stage: str,
    preset: str,
    settings: list[str],
    store: str,
    data: str,
    training_page: Output[HTML],
    init: str = "",
    frozen: str = "",
) -> str:
    """Returns the URI of the model, trained from the initial one or from scratch, with checkpoints in the store."""
    from blip.report.step_page import train_page
    from blip.runs.downstream import item_of
    from blip.runs.train import train
    from components.context import at_work

    with at_work(stage, preset, settings, store, item_of(stage, init)) as step:
        result = train(
            step.run,
            stage,
            data=step.input("data", data),
            init=step.input("init", init) if init else None,
            frozen=step.input("frozen", frozen) if frozen else None,
            out=step.out,
            placed=step.resources.placement,
        )
        return step.finish(result, lambda made: train_page(step.name, made).html(), training_page)
