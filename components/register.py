"""Register: the gate, and the registry behind it."""

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
    """Registers the model, as champion, only if it beats both the first model and the champion so far."""
    from blip.report import step_page
    from blip.runs.register import register
    from blip.runs.stages import of
    from components.revision import revision
    from components.show import show

    made = register(name, preset, of("register", settings), revision(), model.path, before.path, after.path)
    show(made, metrics, card)
    step_page.gate(made, before.path, after.path).save(pictures.path)
