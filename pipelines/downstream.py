"""The downstream pipeline: fine-tunes a model for the tasks of the papers, judges and registers it."""

from typing import Any, cast

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.fetch_model import fetch_model
from components.ingest_task import ingest_task
from components.judge_task import judge_task
from components.plan_downstream import plan_downstream
from components.register_task import register_task
from components.report_downstream import report_downstream
from components.train import train
from pipelines.placement import not_cached, on_cpu, on_placement


@dsl.pipeline(name="task")
def train_and_judge(
    task: str,
    tasks: list[str],
    model: str,
    name: str,
    preset: str,
    overrides: list[str],
    store: str,
    placement: str,
    max_gpu_hours: float,
) -> str:
    """Fine-tunes a model for one of the `tasks`; returns the URI of the gate's decision.

    It takes no output of another step: in a loop on one machine, kfp puts the loop's item in the place of all of these.
    """
    shared: dict[str, Any] = {"preset": preset, "store": store}
    parameters = {"name": name, "overrides": overrides, "placement": placement, "max_gpu_hours": max_gpu_hours}
    requests = not_cached(on_cpu(plan_downstream(**shared, **parameters, task=task, tasks=tasks), "plan")).outputs
    fetched = not_cached(on_cpu(fetch_model(**shared, model=model, task=task), "fetch-model")).outputs["Output"]
    stage = requests["stage"]
    shared["settings"] = requests["settings"]
    data = on_cpu(ingest_task(**shared, task=stage), "ingest").outputs["Output"]
    tuned = on_placement(train(**shared, stage=stage, data=data, init=fetched), "fine-tune", requests)
    made = tuned.outputs["Output"]
    judged = on_placement(judge_task(**shared, task=stage, data=data, model=made), "judge", requests)
    gate = {"name": name, "task": stage, "model": made, "after": judged.outputs["Output"]}
    return cast(str, on_cpu(register_task(**shared, **gate), "register").outputs["Output"])


# kfp's types do not state the return type of its decorator
TRAIN_AND_JUDGE = cast(GraphComponent, train_and_judge)


@dsl.pipeline(name="downstream")
def downstream(
    store: str,
    tasks: list[str] = ["retrieval", "captioning", "vqa", "nlvr", "dialog"],  # noqa: B006
    model: str = "models:/blip@champion",
    preset: str = "shapes",
    overrides: list[str] = [],  # noqa: B006
    name: str = "blip",
    placement: str = "cpu",
    max_gpu_hours: float = 0.0,
):
    """Fine-tunes a model for the tasks of the papers (BLIP, section 5), judges it, and registers a model for each task.

    1. plan: check all settings and the files that they name
    2. fetch-model: copy the model to start from, such as one of the registry
    3. ingest: read the data of a task into shards
    4. fine-tune: learn the task from the model
    5. judge: score the task, and the video task that its model can do without training
    6. register: let a better model through the gate into the registry
    7. report: put the figures of all tasks on one page

    Steps 1 to 6 run for each of the `tasks`. The data of a task are the world of shapes unless settings name others,
    such as `ingest_vqa.data.type=vqav2 ingest_vqa.data.annotations=s3://bucket/vqa ingest_vqa.data.images=...`. The
    models are registered as `NAME-TASK`. A task such as `vqa@first` starts from the first model of the bootstrap that
    made `model`, so that `tasks=[vqa@first,vqa]` reports what CapFilt is worth for that task (BLIP, table 1); it is
    not registered.
    `placement` and `max_gpu_hours` are as in the bootstrap.
    """
    shared = {"name": name, "preset": preset, "overrides": overrides, "store": store, "placement": placement}
    with dsl.ParallelFor(cast(Any, tasks), parallelism=1) as task:
        decision = TRAIN_AND_JUDGE(**shared, max_gpu_hours=max_gpu_hours, task=task, tasks=tasks, model=model)
    not_cached(on_cpu(report_downstream(store=store, decisions=cast(Any, dsl.Collected(decision.output))), "report"))
