"""Report: the run on one page, its figures in one file, and on record what it has learnt from."""

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
    """Shows before and after, curves, and pictures with their texts; a retraining looks for shards that came after this run's."""
    from blip.runs.new_shards import mark_trained
    from blip.runs.report import report
    from components.context import context

    files = {"ingest": ingest.path, "pretrain": pretrain.path, "captioner": captioner.path, "filter": filter.path}
    files |= {"capfilt": capfilt.path, "select": select.path, "pretrain-again": again.path}
    files |= {"evaluate-before": before.path, "evaluate-after": after.path, "register": register.path}
    report(
        context("report", "", settings, store),
        files,
        kept=kept.path,
        page=page.path,
        card=card.path,
        summary=summary.path,
    )
    mark_trained(name, store, data.path)
