"""Ingest the data of a downstream task."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def ingest_task(task: str, preset: str, settings: list[str], store: str, data_page: Output[HTML]) -> str:
    """Returns the URI of the data folder of a task."""
    from blip.report.step_page import ingest_page
    from blip.runs.downstream import ingest_settings, ingest_task
    from components.context import at_work

    with at_work("ingest", preset, [], store, task) as step:
        run = step.run.model_copy(update={"overrides": tuple(ingest_settings(task, settings))})
        result = ingest_task(run, task, out=step.out)
        return step.finish(result, lambda made: ingest_page(made, step.out).html(), data_page)
