"""Judge a model that was fine-tuned for a downstream task."""

from kfp.dsl import HTML, Output

from components.image import step


@step
def judge_task(
    task: str, preset: str, settings: list[str], store: str, data: str, model: str, scores_page: Output[HTML]
) -> str:
    """Returns the URI of the model's scores, with the files that the data sets' servers take."""
    from blip.launch.placement import workers
    from blip.report.step_page import evaluation_page
    from blip.runs.downstream import item_of, judge
    from blip.runs.outputs import StepOutput
    from components.context import at_work

    item = item_of(task, StepOutput.load(model).input("init").uri)
    with at_work("evaluate", preset, settings, store, item) as step:
        folder, pods = step.input("data", data), workers(step.resources.placement, "evaluate")
        result = judge(step.run, task, data=folder, model=step.input("model", model), out=step.out, workers=pods)
        return step.finish(result, lambda made: evaluation_page(step.name, made, folder).html(), scores_page)
