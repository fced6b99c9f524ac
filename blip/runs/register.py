"""Register: the gate, and the registry behind it."""

import json
import time
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field

from blip.config import Config, ConfigError, load
from blip.digest import folder_digest
from blip.tracking import champion, promote
from blip.tracking import register as keep
from blip.tracking import start as track


class RegisterConfig(Config):
    gate: tuple[str, ...] = Field(default=("retrieval.mean", "captioning.cider"), min_length=1)
    """Scores of the evaluation that must all be greater than the first model's, and none less than the champion's."""


def register(name: str, preset: str, overrides: Sequence[str], revision: str, model: str, before: str, after: str) -> dict[str, Any]:
    """Registers a model folder under a name, as its champion, only if it beats the first model and the champion so far.

    `before` and `after` are the files with the evaluation's figures of the first model and of this one.
    """
    began = time.monotonic()
    cfg = load(RegisterConfig, "register", preset, overrides)
    first, new = (scores(json.loads(Path(path).read_text()), cfg.gate) for path in (before, after))
    digest = folder_digest(Path(model))
    with track("register", tags={"revision": revision}, parents={"model": digest}) as run:
        run.params({"name": name, **cfg.model_dump(mode="json")})
        holder = champion(name)
        worse = [
            f"{metric} is {new[metric]:.4g}, the first model's is {first[metric]:.4g}"
            for metric in cfg.gate
            if new[metric] <= first[metric]
        ]
        if holder and holder.digest != digest:
            worse += beaten(new, holder.metrics, f"champion's (version {holder.version})")
        run.metrics({f"gate/{metric}": value for metric, value in new.items()})
        found: dict[str, Any] = {"registered": not worse, "version": None, "mlflow": run.url}
        if worse:
            found["gate"] = f"not registered: {'; '.join(worse)}"
        else:
            version = keep(run, model, name, new, {"revision": revision})
            promote(name, version)
            others = f"the first model and version {holder.version}" if holder and holder.version != version else "the first model"
            found |= {"version": version, "gate": f"registered as version {version} of {name}, its champion: it beats {others}"}
        run.tags({"gate": found["gate"]})
    return {**found, "seconds": time.monotonic() - began}


def beaten(new: Mapping[str, float], held: Mapping[str, float], whose: str) -> list[str]:
    """Why a model does not take the champion's place: some score is less, or none is greater."""
    known = [metric for metric in new if metric in held]
    less = [f"{metric} is {new[metric]:.4g}, the {whose} is {held[metric]:.4g}" for metric in known if new[metric] < held[metric]]
    return less or ([] if any(new[m] > held[m] for m in known) else [f"no score is greater than the {whose}"])


def scores(figures: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Figures under dotted names. Raises ConfigError that lists what there is."""
    try:
        return {metric: float(reduce(lambda part, key: part[key], metric.split("."), figures)) for metric in metrics}  # type: ignore[arg-type]
    except (KeyError, TypeError):
        there = sorted(f"{task}.{score}" for task, part in figures.items() if isinstance(part, Mapping) for score in part)
        raise ConfigError(f"gate: not all of {', '.join(metrics)} were measured; there are {', '.join(there)}") from None
