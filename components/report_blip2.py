"""Report of BLIP-2: writes the run's page and figures."""

from kfp.dsl import HTML, Metrics, Output

from components.image import step


@step
def report_blip2(
    settings: list[str], store: str, opt: str, t5: str, report_page: Output[HTML], metrics: Output[Metrics]
):
    """Reports on all that led to two decisions: of the decoder-only language model, and of that with an encoder."""
    from blip.runs.outputs import StepOutput
    from blip.runs.report_blip2 import Blip2Outputs, report_blip2
    from components.context import at_work, write_page

    with at_work("report", "", settings, store) as step:
        found = Blip2Outputs.behind(StepOutput.load(opt), StepOutput.load(t5))
        summary, html = report_blip2(step.run, found)
        write_page(html, report_page)
        summary.save(metrics.path)
        metrics.metadata.update(summary.compared())
