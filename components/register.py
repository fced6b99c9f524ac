"""Register: the gate in front of the model registry."""

from kfp.dsl import HTML, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def register(
    name: str,
    preset: str,
    settings: list[str],
    model: Input[Model],
    before: Input[Metrics],
    after: Input[Metrics],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Registers the model as champion if it beats the first model and the current champion."""
    from blip.report.step_page import gate_page
    from blip.results import EvaluationResult
    from blip.runs.register import register
    from components.context import stage_context
    from components.show import show

    run = stage_context("register", preset, settings)
    result = register(run, name, model=model.path, before=before.path, after=after.path)
    show(result, metrics, card)
    gate_page(result, *(EvaluationResult.load(file.path) for file in (before, after))).save(pictures.path)
