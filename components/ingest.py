"""Ingest: turns a data set into shards that all later steps stream."""

from kfp.dsl import HTML, Dataset, Markdown, Metrics, Output

from components.image import step


@step
def ingest(
    source: str,
    preset: str,
    settings: list[str],
    store: str,
    data: Output[Dataset],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Writes the source's shards to the store, and their manifests and the tokenizer to the data folder."""
    from blip.report.step_page import ingest_page
    from blip.runs.ingest import ingest
    from components.context import stage_context
    from components.show import show

    result = ingest(stage_context("ingest", preset, settings, store), source, out=data.path)
    show(result, metrics, card)
    ingest_page(result, data.path).save(pictures.path)
