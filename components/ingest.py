"""Ingest: turns a data set into shards that all later steps stream."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def ingest(source: str, preset: str, settings: list[str], store: str, data_page: Output[HTML]) -> str:
    """Returns the URI of the data folder: manifests of the shards, which lie in the store, and the tokenizer."""
    from blip.report.step_page import ingest_page
    from blip.runs.ingest import ingest
    from components.context import at_work

    with at_work("ingest", preset, settings, store) as step:
        result = ingest(step.run, source, out=step.out)
        return step.finish(result, lambda made: ingest_page(made, step.out).html(), data_page)
