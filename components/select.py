"""Select: selects among the texts that CapFilt scored, in seconds."""

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
    """Writes the data folder to pre-train on again: a copy with the kept texts in place of the web pairs."""
    from blip.runs.select import select
    from components.context import stage_context
    from components.show import show

    run = stage_context("select", preset, settings)
    show(select(run, data=scored.path, out=kept.path, page=pictures.path), metrics, card)
