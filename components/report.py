"""Report: writes the run's page and figures, and records the shards it was trained on."""

from kfp.dsl import HTML, Metrics, Output

from components.image import step


@step
def report(
    name: str, settings: list[str], store: str, decision: str, report_page: Output[HTML], metrics: Output[Metrics]
):
    """Reports on the bootstrap that led to a decision, and marks its web shards as trained for the next retraining."""
    from blip.runs.new_shards import mark_trained
    from blip.runs.outputs import StepOutput
    from blip.runs.report import BootstrapOutputs, report
    from components.context import at_work, write_page

    with at_work("report", "", settings, store) as step:
        found = BootstrapOutputs.behind(StepOutput.load(decision))
        with found.select.folder() as kept, found.ingest.folder() as data:
            summary, html = report(step.run, found.results(), kept=kept)
            write_page(html, report_page)
            summary.save(metrics.path)
            metrics.metadata.update(summary.compared())
            mark_trained(name, store, data)
