"""The resources of a run: where its work is done, and the GPU hours that it may spend."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from blip.config import Config, ConfigError, merged, set_value, validate
from blip.config.presets import require_mapping
from blip.config.yaml_text import parse_yaml
from blip.launch.placement import Placement
from blip.storage import Store, open_store

PLACEMENTS = "BLIP_PLACEMENTS"
"""Environment variable with the cluster's placements by name, as YAML, beside the packaged ones or in their place."""
QUEUE = "BLIP_QUEUE"
"""Environment variable with the name of the cluster's Kueue LocalQueue, if any."""
FILE = "resources.json"


class Resources(Config):
    """What the steps of a run may use.

    It changes no output, so it is no input of a step: a run with more memory or more GPU hours takes the same steps
    from the cache. A run's first step writes it to the store, and the others read it there.
    """

    placement: Placement = Placement()
    max_gpu_hours: float = Field(default=0.0, ge=0)
    """GPU hours that all steps together may spend; 0 for no bound."""

    @classmethod
    def of(cls, placement: str, changes: Sequence[str] = (), max_gpu_hours: float = 0.0) -> Self:
        """Returns the placement of that name with changes `key=value`, and the GPU hours. Raises ConfigError."""
        placed = find_placement(placement, changes)
        return validate(cls, {"placement": placed, "max_gpu_hours": max_gpu_hours}, "resources")

    def save(self, store: str) -> None:
        """Writes them for the steps of this run."""
        home(store).put(FILE, self.model_dump_json(exclude_defaults=True).encode())

    @classmethod
    def load(cls, store: str) -> Self:
        """Reads those of this run; a step outside of a run has its own process and no bound."""
        found = home(store)
        if not os.environ.get("BLIP_GROUP") or not found.exists(FILE):
            return cls()
        return cls.model_validate_json(found.get(FILE))


def home(store: str) -> Store:
    """Returns the folder of this run in the store."""
    return open_store(store).join("runs", os.environ.get("BLIP_GROUP") or "no-run")


def find_placement(name: str, changes: Sequence[str]) -> Placement:
    """Returns the placement of a name with changes `key=value`. Raises ConfigError."""
    known = placements()
    if name not in known:
        raise ConfigError(
            f"placement {name!r} is not known; choices: {', '.join(sorted(known))}; others can be added to the key "
            "`placements` of the cluster's ConfigMap `blip`"
        )
    values: dict[str, Any] = {"queue": os.environ.get(QUEUE, ""), **known[name]}
    changed: dict[str, Any] = {}
    for change in changes:
        set_value(changed, change)
    return validate(Placement, merged(values, changed), f"placement {name}")


def placements() -> dict[str, dict[str, Any]]:
    """Returns the placements by name: the packaged ones, and those of the cluster. Raises ConfigError."""
    packaged = Path(__file__).with_name("placements.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    for origin, text in (("placements.yaml", packaged), (PLACEMENTS, os.environ.get(PLACEMENTS, ""))):
        for name, values in require_mapping(parse_yaml(text, origin), origin).items():
            found[name] = require_mapping(values, f"{origin}: placement {name}")
    return found
