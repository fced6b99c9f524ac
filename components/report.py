"""Report: writes the run's page and summary, and records the shards it was trained on."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output

from components.image import step


@step
def report(
    name: str,
    store: str,
    settings: list[str],
    ingest: Input[Metrics],
    pretrain: Input[Metrics],
    captioner: Input[Metrics],
    filter: Input[Metrics],
    capfilt: Input[Metrics],
    select: Input[Metrics],
    again: Input[Metrics],
    before: Input[Metrics],
    after: Input[Metrics],
    register: Input[Metrics],
    data: Input[Dataset],
    kept: Input[Dataset],
    page: Output[HTML],
    card: Output[Markdown],
    summary: Output[Artifact],
):
    """Writes the report, and marks this run's web shards as trained for the next retraining."""
    from blip.runs.new_shards import mark_trained
    from blip.runs.report import report
    from components.context import stage_context

    files = {"ingest": ingest.path, "pretrain": pretrain.path, "captioner": captioner.path, "filter": filter.path}
    files |= {"capfilt": capfilt.path, "select": select.path, "pretrain-again": again.path}
    files |= {"evaluate-before": before.path, "evaluate-after": after.path, "register": register.path}
    report(
        stage_context("report", "", settings, store),
        files,
        kept=kept.path,
        page=page.path,
        card=card.path,
        summary=summary.path,
    )
    mark_trained(name, store, data.path)
