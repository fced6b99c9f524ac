"""Select: of the texts that CapFilt has scored those that match, by thresholds that cost seconds to change."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Output

from components.image import step


@step
def select(
    preset: str,
    settings: list[str],
    scored: Input[Dataset],
    kept: Output[Dataset],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Makes the data folder to pre-train on again: what is kept takes the place of the web pairs, all else stays."""
    from blip.runs.select import select
    from components.context import context
    from components.show import show

    run = context("select", preset, settings)
    show(select(run, data=scored.path, out=kept.path, page=pictures.path), metrics, card)
