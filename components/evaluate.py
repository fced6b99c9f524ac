"""Evaluate: scores a model's retrieval and captioning on held-out images."""

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.image import step


@step
def evaluate(
    preset: str,
    settings: list[str],
    store: str,
    max_gpu_hours: float,
    jobs: list[str],
    image: str,
    data: Input[Dataset],
    model: Input[Model],
    scores: Output[Dataset],
    pictures: Output[HTML],
    metrics: Output[Metrics],
    card: Output[Markdown],
):
    """Scores the model on the test split; the folder `scores` holds the figures and every caption."""
    from blip.launch.placement import placement, workers
    from blip.report.step_page import evaluation_page
    from blip.runs.evaluate import evaluate
    from components.context import stage_context
    from components.show import show

    run, pods = (
        stage_context("evaluate", preset, settings, store, max_gpu_hours),
        workers(placement(jobs, image), "evaluate"),
    )
    result = evaluate(run, data=data.path, model=model.path, out=scores.path, workers=pods)
    show(result, metrics, card)
    evaluation_page(result, data.path).save(pictures.path)
