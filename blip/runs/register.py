"""Register: the gate in front of the model registry."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from blip.config import Config, ConfigError
from blip.digest import folder_digest
from blip.results import EvaluationResult, GateResult, gain
from blip.runs.context import RunContext
from blip.storage.records import parse_record
from blip.tasks.model_folder import load_task, read_model_config
from blip.tracking import Champion, champion, promote, register_model, start_run
from blip.workers.model import RUN_RECORD, model_digest
from blip.zoo.source import our_model

MODEL_NAME = re.compile(r"[^\W_](?:[\w .-]{0,98}[\w.-])?")
"""Valid model names: they become names and search filters in MLflow, and folders in the store."""


USE = (
    "Research on images and English texts of the kind that it was trained on. Not for decisions about people; captions "
    "and answers may be wrong, and repeat what is wrong in the training data."
)


def as_margins(value: Any) -> Any:
    """Returns a list of scores as margins of 0; `caption` is short for `captioning`."""
    margins = dict.fromkeys(value, 0.0) if isinstance(value, list | tuple) else value
    if not isinstance(margins, dict):
        return margins
    return {re.sub(r"^caption\.", "captioning.", str(name)): margin for name, margin in margins.items()}


class RegisterConfig(Config):
    gate: Annotated[dict[str, float], BeforeValidator(as_margins)] = Field(
        default={"retrieval.mean": 0.0, "captioning.cider": 0.0}, min_length=1
    )
    """Scores of any task, each with the least gain; a list of scores asks for gains of 0. A negative one is a loss that
    is tolerated. All scores must be finite, and gain more than that over the first model's. Over the champion's, where
    it has them, none may gain less, and at least one must gain more than nothing."""
    licence: str = "not stated"
    """The licence of the model, for its card."""
    data_licence: str = "as of each source"
    """The licences of the training data, for the card."""
    intended_use: str = USE
    """The intended use of the model, for its card."""


def register(
    context: RunContext, name: str, *, model: str | Path, after: str | Path, before: str | Path | None = None
) -> GateResult:
    """Registers a model (`zoo.source`) as the champion of a name if it beats the first model and the current champion.

    `before` and `after` are the `metrics.json` of the evaluations of the first model, if there is one, and of this one.
    Raises ConfigError if the name, a file or the model folder is unusable, or if `after` evaluates another model.
    """
    began = time.monotonic()
    check_name(name)
    cfg = context.settings(RegisterConfig, "register")
    evaluated = EvaluationResult.load(after)
    new = scores(evaluated, list(cfg.gate))
    earlier = EvaluationResult.load(before) if before else None
    first = scores(earlier, list(cfg.gate)) if earlier else {}
    folder = our_model(model, "register")
    check_model(folder, evaluated.digest)
    digest = folder_digest(folder)
    with start_run("register", tags={"revision": context.revision}, parents={"model": digest}) as run:
        run.params({"name": name, **cfg.model_dump(mode="json")})
        run.metrics({f"gate/{metric}": value for metric, value in new.items() if math.isfinite(value)})
        holder = champion(name)
        if holder and holder.digest == digest:
            holder = None  # the same model
        against = comparable(new, holder)
        worse = (
            not_finite(new, "", evaluated)
            or (not_finite(first, "the first model's ", earlier) if earlier else [])
            or (not_better(new, first, "the first model's", cfg.gate) if first else [])
        )
        if holder and against and not worse:
            worse = beaten(new, against, f"champion's (version {holder.version})", cfg.gate)
        version = None
        if worse:
            why = f"not registered: {'; '.join(worse)}"
        else:
            version = register_model(
                run,
                folder,
                name,
                new,
                {"revision": context.revision},
                task=read_model_config(folder).task.type,
                facts=card_facts(cfg, folder, evaluated, context.revision),
                all_scores=evaluated.named(),
            )
            promote(name, version)
            why = f"registered as version {version} of {name}, its champion: {comparison(new, first, against, holder)}"
        run.tags({"gate": why})
    seconds = time.monotonic() - began
    return GateResult(registered=not worse, version=version, reason=why, digest=digest, mlflow=run.url, seconds=seconds)


def card_facts(cfg: RegisterConfig, model: Path, evaluated: EvaluationResult, revision: str) -> dict[str, str]:
    """Returns what the card of a model says: its origin as the model folder records it, its use, and licences."""
    path = model / RUN_RECORD
    record = parse_record(path.read_bytes(), str(path)) if path.is_file() else {}
    made_from = record.get("made_from")
    origin = made_from if isinstance(made_from, dict) else {}
    parents = "\n".join(f"- {name}: `{digest}`" for name, digest in origin.items()) or "Not recorded."
    return {
        "Intended use": cfg.intended_use,
        "Model": f"Trained for {read_model_config(model).task.type}; digest `{model_digest(model)}`, code {revision}.",
        "Data and parents, by digest": parents,
        "Evaluated on": f"The split {evaluated.split}. Left out: {dict(evaluated.rejected) or 'nothing'}.",
        "Licences": f"Model: {cfg.licence}. Data: {cfg.data_licence}.",
    }


def check_name(name: str) -> str:
    """Returns a valid model name. Raises ConfigError if the registry or the store cannot take it."""
    if MODEL_NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"model name {name!r}: use at most 100 letters, digits, spaces and . _ -, with a letter or digit first and "
        "no space last, such as name=my-model; it names the model in MLflow and a folder in the store"
    )


def scores(evaluated: EvaluationResult, metrics: Sequence[str]) -> dict[str, float]:
    """Returns the gate's scores, NaN for those that the evaluation says it could not compute.

    Raises ConfigError, with the available ones, if another is missing.
    """
    found = evaluated.named()
    if missing := [metric for metric in metrics if metric not in found and not why_not_scored(metric, evaluated)]:
        raise ConfigError(
            f"gate: {', '.join(missing)} was not measured; there are {', '.join(sorted(found)) or 'none'}: "
            "evaluate it too, or set register.gate to some of what there is"
        )
    return {metric: found.get(metric, math.nan) for metric in metrics}


def why_not_scored(metric: str, evaluated: EvaluationResult) -> str:
    """Returns the reason for which a score, or its whole task, could not be computed; empty if there is none."""
    return evaluated.not_scored.get(metric) or evaluated.not_scored.get(metric.partition(".")[0], "")


def check_model(folder: Path, evaluated: str) -> None:
    """Raises ConfigError if a model folder does not load, or if another model was evaluated."""
    load_task(folder)
    digest = model_digest(folder)
    if evaluated not in ("", digest):
        raise ConfigError(
            f"--model {folder} (digest {digest[:12]}) is not the model that --after was measured of "
            f"({evaluated[:12]}): evaluate this one first"
        )


def comparable(new: Mapping[str, float], holder: Champion | None) -> dict[str, float]:
    """Returns the champion's finite scores that the new model has too."""
    if holder is None:
        return {}
    return {metric: value for metric, value in holder.metrics.items() if metric in new and math.isfinite(value)}


def not_finite(values: Mapping[str, float], whose: str, evaluated: EvaluationResult) -> list[str]:
    """Describes each score that is not finite, or that the evaluation could not compute."""
    found = []
    for metric, value in values.items():
        if reason := why_not_scored(metric, evaluated):
            found.append(f"{whose}{metric} is not scored: {reason}")
        elif not math.isfinite(value):
            found.append(f"{whose}{metric} is {value}, which is no score")
    return found


def not_better(
    new: Mapping[str, float], first: Mapping[str, float], whose: str, margins: Mapping[str, float]
) -> list[str]:
    """Describes each score that gains no more than its margin over the first model's."""
    worse = [metric for metric, value in new.items() if gain(metric, value, first[metric]) <= margins[metric]]
    return [comparison_of(metric, new, first, whose, margins) for metric in worse]


def beaten(new: Mapping[str, float], held: Mapping[str, float], whose: str, margins: Mapping[str, float]) -> list[str]:
    """Why a model does not take the champion's place: some score gains less than its margin, or none gains anything."""
    gains = {metric: gain(metric, new[metric], value) for metric, value in held.items()}
    less = [metric for metric, value in gains.items() if value < margins[metric]]
    if less:
        return [comparison_of(metric, new, held, f"the {whose}", margins) for metric in less]
    return [] if any(value > 0 for value in gains.values()) else [f"no score is better than the {whose}"]


def comparison_of(
    metric: str, new: Mapping[str, float], old: Mapping[str, float], whose: str, margins: Mapping[str, float]
) -> str:
    """Describes a score beside another model's, and its margin if that is not 0."""
    margin = f" (the gate asks for a gain of {margins[metric]:+.4g})" if margins[metric] else ""
    return f"{metric} is {new[metric]:.4g}, {whose} is {old[metric]:.4g}{margin}"


def comparison(
    new: Mapping[str, float], first: Mapping[str, float], against: Mapping[str, float], holder: Champion | None
) -> str:
    """Describes what the accepted model was compared with."""
    if not first:
        if holder and against:
            return f"it beats version {holder.version}"
        return "there was none to compare it with in " + ", ".join(new)
    if holder is None:
        return "it beats the first model"
    if not against:
        had = ", ".join(sorted(holder.metrics)) or "none"
        wanted = ", ".join(new)
        return f"it beats the first model alone, for version {holder.version} has no finite {wanted} (it has {had})"
    alone = "" if len(against) == len(new) else f" (in {', '.join(against)} alone)"
    return f"it beats the first model and version {holder.version}{alone}"
