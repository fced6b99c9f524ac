"""Report on the downstream tasks."""

from kfp.dsl import HTML, Metrics, Output

from components.image import step


@step
def report_downstream(store: str, decisions: list[str], report_page: Output[HTML], metrics: Output[Metrics]):
    """Reports on the tasks that led to these decisions of the gate."""
    from blip.report.downstream_page import downstream_html
    from blip.runs.downstream import summarise
    from blip.runs.outputs import StepOutput
    from components.context import at_work, write_page

    with at_work("report", "", [], store) as step:
        result = summarise([StepOutput.load(decision) for decision in decisions])
        write_page(downstream_html(result, revision=step.run.revision), report_page)
        result.save(metrics.path)
        metrics.metadata.update(result.compared())
