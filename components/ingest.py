"""Ingest: a data set, read once, becomes shards that every later step streams."""

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
    """Writes the source's shards to the store; the data folder holds their manifests and the tokenizer."""
    from blip.report import step_page
    from blip.runs.ingest import ingest
    from blip.runs.stages import of
    from components.revision import revision
    from components.show import show

    made = ingest(source, preset, of("ingest", settings), store, revision(), data.path)
    show(made, metrics, card)
    step_page.data(made, data.path).save(pictures.path)
