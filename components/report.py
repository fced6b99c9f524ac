"""Report: the run on one page, and its figures in one file."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components.image import step


@step
def report(
    revision: str,
    ingest: Input[Metrics],
    pretrain: Input[Metrics],
    captioner: Input[Metrics],
    filter: Input[Metrics],
    capfilt: Input[Metrics],
    again: Input[Metrics],
    before: Input[Metrics],
    after: Input[Metrics],
    register: Input[Metrics],
    kept: Input[Dataset],
    page: Output[HTML],
    summary: Output[Artifact],
):
    """Shows before and after, curves, and pictures with their texts, scores and decisions."""
    from blip.runs.report import report

    training = {"ingest": ingest.path, "pretrain": pretrain.path, "captioner": captioner.path, "filter": filter.path}
    judging = {"capfilt": capfilt.path, "pretrain-again": again.path, "evaluate-before": before.path, "evaluate-after": after.path}
    report({**training, **judging, "register": register.path}, kept.path, page.path, summary.path, revision)
