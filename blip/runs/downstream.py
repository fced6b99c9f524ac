"""Downstream: fine-tunes a model for tasks of the papers, judges it, and registers a model for each task."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from blip.config import Config, ConfigError, load_config
from blip.digest import folder_digest
from blip.evaluation.job import TASKS, EvaluateConfig
from blip.results import DownstreamResult, EvaluationResult, FetchResult, GateResult, IngestResult, Point, TrainResult
from blip.runs import stages
from blip.runs.context import RunContext
from blip.runs.data_config import IngestConfig, ShapesTask
from blip.runs.evaluate import METRICS, evaluate
from blip.runs.fetch_model import FROM_FIRST
from blip.runs.ingest import ingest
from blip.runs.outputs import StepOutput
from blip.runs.plan import cache_keys, sources_are_there
from blip.runs.register import RegisterConfig, check_name, register
from blip.shards.manifest import Manifest
from blip.storage import scratch
from blip.workers.progress import Workers
from blip.zoo.source import our_model

CLIPS = {"retrieval": "video_retrieval", "vqa": "video_qa"}
"""The video task that a model of an image task is judged by without training (BLIP, section 5.6)."""
CLIPS_SPLIT = "clips"
SHAPES_TASK = ShapesTask.model_fields["type"].default
GATES = {
    "retrieval": "retrieval.mean",
    "captioning": "captioning.cider",
    "vqa": "vqa.accuracy",
    "nlvr": "nlvr.accuracy",
    "dialog": "dialog.mrr",
}
"""The score by which the gate compares models of each task, unless its settings name scores of that task."""


def stage_of(item: str) -> str:
    """Returns the stage of an item of the pipeline's `tasks`: `vqa` of `vqa`, and of `vqa@first`.

    Raises ConfigError if it is none.
    """
    task = item.removesuffix(FROM_FIRST)
    if task not in stages.TASKS:
        raise ConfigError(
            f"task {item!r} is none of {', '.join(stages.TASKS)}: set tasks to some of these, such as tasks=[vqa], or "
            f"tasks=[vqa{FROM_FIRST},vqa] to compare with the bootstrap's first model"
        )
    return task


def item_of(stage: str, init: str) -> str:
    """Returns the item of `tasks` that a training is of, given the URI of the model that it starts from.

    Empty for a training of another pipeline.
    """
    if stage not in stages.TASKS or not init:
        return ""
    return f"{stage}{FROM_FIRST}" if StepOutput.load(init).result.get("first") else stage


def judged_tasks(task: str) -> list[str]:
    """Returns the names of the evaluations of a task's model: its own, and that of its video task if it has one."""
    return [task, *([CLIPS[task]] if task in CLIPS else [])]


def plan_downstream(
    name: str, item: str, items: Sequence[str], preset: str, overrides: Sequence[str]
) -> tuple[str, list[str]]:
    """Returns the stage of one of the pipeline's `tasks`, and the settings of its steps with keys.

    The keys change if the settings, or what they name, have changed.
    Overrides of a stage are `STAGE.key=value`; those of one task's ingestion are `ingest_TASK.key=value`.
    Raises ConfigError with all mistakes, those in settings of other tasks too.
    """
    check_name(name)
    chosen = {stage_of(other) for other in items}
    task = stage_of(item)
    own = [o for o in overrides if o.startswith("ingest_")]
    others = [o for o in overrides if o not in own and not o.startswith("ingest.")]
    known = stages.load_stages(preset, others, stages.DOWNSTREAM)
    overrides_are_read(chosen, overrides, known["register"])
    evaluated = [*stages.overrides_for("evaluate", overrides), f"tasks=[{','.join(judged_tasks(task))}]"]
    configs: dict[str, Config | None] = {
        "ingest": load_config(IngestConfig, "ingest", preset, ingest_settings(task, overrides)),
        task: known[task],
        "evaluate": load_config(EvaluateConfig, "evaluate", preset, evaluated),
        "register": known["register"],
    }
    sources_are_there(configs)
    ours = [o for o in overrides if o.partition(".")[0] in ("ingest", f"ingest_{task}", task, "evaluate", "register")]
    return task, [*ours, *(f"key.{stage}={key}" for stage, key in cache_keys(configs).items())]


def overrides_are_read(chosen: Collection[str], overrides: Sequence[str], register: Config) -> None:
    """Raises ConfigError with all overrides that no step of the chosen tasks reads."""
    judged = {name for task in chosen for name in judged_tasks(task)}
    wrong = []
    for override in overrides:
        stage, _, rest = override.partition(".")
        key = re.split(r"[.=]", rest, maxsplit=1)[0]
        task = stage.removeprefix("ingest_")
        if stage.startswith("ingest_") and task not in stages.TASKS:
            choices = ", ".join(f"ingest_{name}" for name in stages.TASKS)
            wrong.append(f"override {override!r} is of no task's ingestion; choices: {choices}")
        elif task in stages.TASKS and task not in chosen:
            wrong.append(f"override {override!r} is of {task}, which {left_out(chosen, task)}")
        elif stage == "evaluate" and key in TASKS and key not in judged:
            wrong.append(f"override {override!r} is of {key}, which {left_out(chosen, key)}")
        elif stage == "evaluate" and key == "tasks":
            wrong.append(f"override {override!r}: each model is judged on its own task; set tasks instead")
    if any(override.startswith("register.gate") for override in overrides):
        measured = {metric: metric.partition(".")[0] for metric in getattr(register, "gate", ())}
        wrong += [
            f"register.gate asks for {metric}, which {left_out(chosen, task)}"
            for metric, task in measured.items()
            if task not in judged
        ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def left_out(chosen: Collection[str], task: str) -> str:
    """Says that a task is not among the chosen ones, and the way out."""
    needed = next((image for image, video in CLIPS.items() if video == task), task)
    given = ", ".join(name for name in stages.TASKS if name in chosen)
    return f"tasks=[{given}] leaves out: add {needed} to tasks, or take the setting away"


def ingest_settings(task: str, settings: Sequence[str]) -> list[str]:
    """Returns the overrides of the ingestion of a task's data: the world of shapes, unless they set `data.type`."""
    given = [*stages.overrides_for("ingest", settings), *stages.overrides_for(f"ingest_{task}", settings)]
    if any(override.startswith("data.type=") for override in given):
        return given
    return ["data.type=shapes_task", f"data.task={task}", *given]


def ingest_task(context: RunContext, task: str, *, out: str | Path) -> IngestResult:
    """Ingests the data of a task, whose overrides are `ingest_settings`.

    Where a video task is judged by the task's model, the world of shapes has clips for it in the split `clips`.
    """
    *_, kind = (o.partition("=")[2] for o in context.overrides if o.startswith("data.type="))
    result = ingest(context, kind, out=out)
    if task not in CLIPS or kind != SHAPES_TASK:
        return result
    with scratch("clips") as folder:
        overrides = (*context.overrides, f"data.task={CLIPS[task]}", "data.world.gold=0")
        clips = ingest(context.model_copy(update={"overrides": overrides}), kind, out=folder)
        Manifest.load(folder / "test.json").save(Path(out) / f"{CLIPS_SPLIT}.json")
    return result.model_copy(update={"splits": {**result.splits, CLIPS_SPLIT: clips.splits["test"]}})


def judge(
    context: RunContext,
    task: str,
    *,
    data: str | Path,
    model: str | Path,
    out: str | Path,
    workers: Workers | None = None,
) -> EvaluationResult:
    """Evaluates a fine-tuned model on its task and, if the data have clips, on the video task that it was not trained
    for.
    """

    def evaluated(out: Path, *settings: str) -> EvaluationResult:
        run = context.model_copy(update={"overrides": (*context.overrides, *settings)})
        return evaluate(run, data=data, model=model, out=out, workers=workers)

    result = evaluated(Path(out), f"tasks=[{task}]")
    if task not in CLIPS or not Path(data, f"{CLIPS_SPLIT}.json").is_file():
        return result
    clips = evaluated(Path(out) / CLIPS_SPLIT, f"tasks=[{CLIPS[task]}]", f"split={CLIPS_SPLIT}")
    result = result.model_copy(
        update={
            "scores": {**result.scores, **clips.scores},
            "baseline": {**result.baseline, **clips.baseline},
            "not_scored": {**result.not_scored, **clips.not_scored},
            "seconds": result.seconds + clips.seconds,
            "gpu_hours": result.gpu_hours + clips.gpu_hours,
        }
    )
    result.save(Path(out) / METRICS)
    return result


def register_task(context: RunContext, name: str, item: str, *, model: str | Path, after: str | Path) -> GateResult:
    """Registers the model of an item of `tasks` as `NAME-TASK` if it beats the champion of that name.

    The gate's scores of this task count, or the task's own one if the settings name none of it. What started from the
    first model is not registered: nobody asks a comparison for a champion.
    """
    cfg = context.settings(RegisterConfig, "register")
    task = stage_of(item)
    if item != task:
        reason = f"not registered: {item} starts from the bootstrap's first model, to be compared with {task}"
        return GateResult(
            registered=False, version=None, reason=reason, digest=folder_digest(our_model(model, "register"))
        )
    video = CLIPS.get(task, task)
    own = {metric: margin for metric, margin in cfg.gate.items() if metric.partition(".")[0] in (task, video)}
    gate = json.dumps(own or {GATES[task]: 0.0})
    run = context.model_copy(update={"overrides": (*context.overrides, f"gate={gate}")})
    return register(run, f"{name}-{task}", model=model, after=after)


def summarise(decisions: Sequence[StepOutput]) -> DownstreamResult:
    """Returns the figures of all tasks, given the outputs of their registrations."""
    scores: dict[str, dict[str, float]] = {}
    first: dict[str, dict[str, float]] = {}
    baseline: dict[str, dict[str, float]] = {}
    registered: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    curves: dict[str, dict[str, list[Point]]] = {}
    seconds: dict[str, float] = {}
    gpu_hours = 0.0
    for decision in decisions:
        model, after = decision.input("model"), decision.input("after")
        gate, judged, trained = (
            decision.result_of(GateResult),
            after.result_of(EvaluationResult),
            model.result_of(TrainResult),
        )
        fetched, ingested = model.input("init").result_of(FetchResult), model.input("data").result_of(IngestResult)
        task = next(task for task in stages.TASKS if task in judged.scores)
        item = f"{task}{FROM_FIRST}" if fetched.first else task
        (first if fetched.first else scores).update(judged.scores)
        baseline |= judged.baseline
        reasons[item], curves[item] = gate.reason, trained.curves
        if not fetched.first:
            registered[item] = gate.registered
        seconds[item] = sum(found.seconds for found in (fetched, ingested, trained, judged, gate))
        gpu_hours += judged.gpu_hours + trained.gpu_hours
    return DownstreamResult(
        scores=scores,
        first=first,
        baseline=baseline,
        registered=registered,
        reasons=reasons,
        curves=curves,
        seconds_by_task=seconds,
        seconds=sum(seconds.values()),
        gpu_hours=gpu_hours,
    )
