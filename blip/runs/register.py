"""Register: the gate, and the registry behind it."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field

from blip.config import Config, ConfigError, load
from blip.digest import folder_digest
from blip.tasks.model_folder import load_task
from blip.tracking import Champion, champion, promote, register_model, start_run
from blip.workers.model import model_digest

NAME = re.compile(r"[^\W_](?:[\w .-]{0,98}[\w.-])?")
"""A model's name: it becomes a name in MLflow, a filter of its searches, and a folder of the store."""


class RegisterConfig(Config):
    gate: tuple[str, ...] = Field(default=("retrieval.mean", "captioning.cider"), min_length=1)
    """Scores of the evaluation. All must be finite and greater than the first model's; of those that the champion has
    too, none may be less than the champion's and one must be greater."""


def register(name: str, preset: str, overrides: Sequence[str], revision: str, model: str, before: str, after: str) -> dict[str, Any]:
    """Registers a model folder under a name, as its champion, only if it beats the first model and the champion so far.

    `before` and `after` are the files with the evaluation's figures of the first model and of this one.
    Raises ConfigError where the name, a file or the model folder cannot be used, and where another model was evaluated.
    """
    began = time.monotonic()
    check_name(name)
    cfg = load(RegisterConfig, "register", preset, overrides)
    figures_before, figures_after = read_figures("--before", before), read_figures("--after", after)
    first, new = scores(figures_before, cfg.gate), scores(figures_after, cfg.gate)
    check_model(model, figures_after.get("model"))
    digest = folder_digest(Path(model))
    with start_run("register", tags={"revision": revision}, parents={"model": digest}) as run:
        run.params({"name": name, **cfg.model_dump(mode="json")})
        run.metrics({f"gate/{metric}": value for metric, value in new.items() if math.isfinite(value)})
        holder = champion(name)
        if holder and holder.digest == digest:
            holder = None  # this very model: it need not beat itself
        against = comparable(new, holder)
        worse = not_finite(new, "") or not_finite(first, "the first model's ") or below(new, first, "the first model's")
        if holder and against and not worse:
            worse = beaten(new, against, f"champion's (version {holder.version})")
        found: dict[str, Any] = {"registered": not worse, "version": None, "digest": digest, "mlflow": run.url}
        if worse:
            found["gate"] = f"not registered: {'; '.join(worse)}"
        else:
            version = register_model(run, model, name, new, {"revision": revision})
            promote(name, version)
            found |= {
                "version": version,
                "gate": f"registered as version {version} of {name}, its champion: {reason(new, against, holder)}",
            }
        run.tags({"gate": found["gate"]})
    return {**found, "seconds": time.monotonic() - began}


def check_name(name: str) -> str:
    """The model's name itself. Raises ConfigError for one that the registry or the store cannot take."""
    if NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"model name {name!r}: use at most 100 letters, digits, spaces and . _ -, with a letter or digit first and "
        "no space last, such as name=my-model; it names the model in MLflow and a folder in the store"
    )


def read_figures(option: str, path: str) -> dict[str, Any]:
    """The figures of an evaluation. Raises ConfigError where the file is missing or holds something else."""
    way_out = "give the metrics.json of a `blip evaluate`"
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; {way_out}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} {path} is not JSON ({error}); {way_out}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{option} {path} must hold a mapping, is a {type(values).__name__}; {way_out}")
    return values


def scores(figures: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Figures under dotted names. Raises ConfigError that lists what there is."""
    try:
        return {metric: float(reduce(lambda part, key: part[key], metric.split("."), figures)) for metric in metrics}  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, OverflowError):
        parts = ((task, part) for task, part in figures.items() if isinstance(part, Mapping))
        found = ((task, score, value) for task, part in parts for score, value in part.items())
        there = sorted(f"{task}.{score}" for task, score, value in found if isinstance(value, int | float))
        raise ConfigError(
            f"gate: not all of {', '.join(metrics)} were measured; there are {', '.join(there) or 'none'}: "
            "evaluate these too, or set register.gate to some of what there is"
        ) from None


def check_model(folder: str, evaluated: Any) -> None:
    """Loads a model folder. Raises ConfigError where it does not load, and where another model than this was evaluated."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--model {folder}: there is no such folder; give one that `blip train` wrote")
    load_task(folder)
    digest = model_digest(Path(folder))
    if evaluated not in (None, digest):
        raise ConfigError(
            f"--model {folder} (digest {digest[:12]}) is not the model that --after was measured of "
            f"({str(evaluated)[:12]}): evaluate this one first"
        )


def comparable(new: Mapping[str, float], holder: Champion | None) -> dict[str, float]:
    """The champion's scores that the new model has too; one that is not finite holds nobody back."""
    if holder is None:
        return {}
    return {metric: value for metric, value in holder.metrics.items() if metric in new and math.isfinite(value)}


def not_finite(values: Mapping[str, float], whose: str) -> list[str]:
    odd = {metric: value for metric, value in values.items() if not math.isfinite(value)}
    return [f"{whose}{metric} is {value}, which is no score" for metric, value in odd.items()]


def below(new: Mapping[str, float], first: Mapping[str, float], whose: str) -> list[str]:
    """Why a model is no better than the first one: a score that is not greater."""
    worse = {metric: value for metric, value in new.items() if value <= first[metric]}
    return [f"{metric} is {value:.4g}, {whose} is {first[metric]:.4g}" for metric, value in worse.items()]


def beaten(new: Mapping[str, float], held: Mapping[str, float], whose: str) -> list[str]:
    """Why a model does not take the champion's place: some score is less, or none is greater."""
    less = {metric: value for metric, value in held.items() if new[metric] < value}
    if less:
        return [f"{metric} is {new[metric]:.4g}, the {whose} is {value:.4g}" for metric, value in less.items()]
    more = any(new[metric] > value for metric, value in held.items())
    return [] if more else [f"no score is greater than the {whose}"]


def reason(new: Mapping[str, float], against: Mapping[str, float], holder: Champion | None) -> str:
    """What the model that passes was compared with."""
    if holder is None:
        return "it beats the first model"
    if not against:
        had = ", ".join(sorted(holder.metrics)) or "none"
        wanted = ", ".join(new)
        return f"it beats the first model alone, for version {holder.version} has no finite {wanted} (it has {had})"
    alone = "" if len(against) == len(new) else f" (in {', '.join(against)} alone)"
    return f"it beats the first model and version {holder.version}{alone}"
