"""Downstream: fine-tunes a model for tasks of the papers, judges it, and registers a model for each task."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from blip.config import Config, ConfigError, load_config
from blip.results import DownstreamResult, EvaluationResult, FetchResult, GateResult, IngestResult, TrainResult
from blip.runs import stages
from blip.runs.context import RunContext
from blip.runs.evaluate import METRICS, evaluate
from blip.runs.ingest import IngestConfig, ShapesTask, ingest
from blip.runs.outputs import StepOutput
from blip.runs.plan import cache_keys, sources_are_there
from blip.runs.register import RegisterConfig, check_name, register
from blip.shards.manifest import Manifest
from blip.storage import scratch
from blip.tasks.model_folder import read_model_config
from blip.tracking import REGISTRY, fetch_model
from blip.workers.model import model_digest
from blip.workers.progress import Workers

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


def plan_downstream(name: str, task: str, preset: str, overrides: Sequence[str]) -> list[str]:
    """Returns the settings of a task's steps, followed by keys that change if these, or what they name, have changed.

    Overrides of a stage are `STAGE.key=value`; those of one task's ingestion are `ingest_TASK.key=value`.
    Raises ConfigError with all mistakes, those in settings of other tasks too.
    """
    check_name(name)
    if task not in stages.TASKS:
        raise ConfigError(f"task {task!r} is none of {', '.join(stages.TASKS)}: set tasks to some of these")
    own = {override: override.partition(".")[0].removeprefix("ingest_") for override in overrides}
    own = {override: whose for override, whose in own.items() if override.startswith("ingest_")}
    for override, whose in own.items():
        if whose not in stages.TASKS:
            choices = ", ".join(f"ingest_{name}" for name in stages.TASKS)
            raise ConfigError(f"override {override!r} is of no task's ingestion; choices: {choices}")
    others = [o for o in overrides if o not in own and not o.startswith("ingest.")]
    known = stages.load_stages(preset, others, stages.DOWNSTREAM)
    configs: dict[str, Config | None] = {
        "ingest": load_config(IngestConfig, "ingest", preset, ingest_settings(task, overrides)),
        **{stage: known[stage] for stage in (task, "evaluate", "register")},
    }
    sources_are_there(configs)
    ours = [o for o in overrides if o.partition(".")[0] in ("ingest", f"ingest_{task}", task, "evaluate", "register")]
    return [*ours, *(f"key.{stage}={key}" for stage, key in cache_keys(configs).items())]


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
            "seconds": result.seconds + clips.seconds,
            "gpu_hours": result.gpu_hours + clips.gpu_hours,
        }
    )
    result.save(Path(out) / METRICS)
    return result


def register_task(context: RunContext, name: str, task: str, *, model: str | Path, after: str | Path) -> GateResult:
    """Registers the model of a task as `NAME-TASK` if it beats the champion of that name.

    The gate's scores of this task count, or the task's own one if the settings name none of it.
    """
    cfg = context.settings(RegisterConfig, "register")
    video = CLIPS.get(task, task)
    own = {metric: margin for metric, margin in cfg.gate.items() if metric.partition(".")[0] in (task, video)}
    gate = json.dumps(own or {GATES[task]: 0.0})
    run = context.model_copy(update={"overrides": (*context.overrides, f"gate={gate}")})
    return register(run, f"{name}-{task}", model=model, after=after)


def fetch_champion(source: str, *, out: str | Path) -> FetchResult:
    """Copies a model to the folder `out`: `models:/NAME@ALIAS` or `models:/NAME/VERSION` of the registry, or a folder.

    Raises ConfigError if there is none, and TrackingError if the registry does not answer.
    """
    began = time.monotonic()
    if source.startswith(REGISTRY):
        fetch_model(source, out)
    elif Path(source).is_dir():
        shutil.copytree(source, out, dirs_exist_ok=True)
    else:
        raise ConfigError(
            f"model {source!r}: neither a folder nor a model of the registry, such as models:/blip@champion, which the "
            "bootstrap registers; run it first, or name a model by model=..."
        )
    cfg = read_model_config(out)
    return FetchResult(
        source=source, task=cfg.task.type, digest=model_digest(Path(out)), seconds=time.monotonic() - began
    )


def summarise(decisions: Sequence[StepOutput]) -> DownstreamResult:
    """Returns the figures of all tasks, given the outputs of their registrations."""
    scores: dict[str, dict[str, float]] = {}
    registered: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    seconds = gpu_hours = 0.0
    for decision in decisions:
        gate = decision.result_of(GateResult)
        judged = decision.input("after").result_of(EvaluationResult)
        trained = decision.input("model").result_of(TrainResult)
        task = next(task for task in stages.TASKS if task in judged.scores)
        scores |= judged.scores
        registered[task], reasons[task] = gate.registered, gate.reason
        seconds += gate.seconds + judged.seconds + trained.seconds
        gpu_hours += judged.gpu_hours + trained.gpu_hours
    return DownstreamResult(scores=scores, registered=registered, reasons=reasons, seconds=seconds, gpu_hours=gpu_hours)
