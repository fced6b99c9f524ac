"""Evaluate: how well a model retrieves and describes images that it never saw."""

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
    """Scores the model on the test split; the scores folder holds the figures and every prediction."""
    from blip.launch.placement import placement, workers
    from blip.report import step_page
    from blip.runs.evaluate import evaluate
    from blip.runs.stages import of
    from components.revision import revision
    from components.show import show

    overrides, pods = of("evaluate", settings, max_gpu_hours), workers(placement(jobs, image), "evaluate")
    made = evaluate(preset, overrides, store, revision(), data.path, model.path, scores.path, workers=pods)
    show(made, metrics, card)
    step_page.evaluation(made, data.path).save(pictures.path)
