"""Make frozen: the small frozen models of BLIP-2 for a world that we make, where the settings ask for them."""

import json
import time
from pathlib import Path

from blip.config import Config, ConfigError
from blip.digest import value_digest
from blip.logs import log
from blip.miniatures import MiniaturesConfig, make_miniatures
from blip.models.frozen import frozen_digest
from blip.models.weights.content import MADE_HERE, named_sources
from blip.results import FrozenResult
from blip.runs.context import RunContext
from blip.storage import open_store, scratch, write_file, writing
from blip.tracking import start_run

MINIATURES_FORMAT = 2
"""Part of the key of what was made; raised when a change of the code changes it."""
SOURCES_FILE = "frozen.json"
"""The file with the place of each model by name."""


class FrozenConfig(Config):
    miniatures: MiniaturesConfig | None = None
    """Small models to train; none where the stages name frozen models that others trained."""


def make_frozen(context: RunContext, *, out: str | Path) -> FrozenResult:
    """Makes small frozen models in the store, once for the same settings, and writes their places to the folder `out`.

    Without `miniatures` in the settings nothing is made. Raises ConfigError and StoreError.
    """
    began = time.monotonic()
    cfg = context.settings(FrozenConfig, "frozen")
    folder = Path(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with start_run("frozen", tags={"revision": context.revision}) as run:
        run.params(cfg.model_dump(mode="json"))
        made = made_once(context.store, cfg.miniatures) if cfg.miniatures else FrozenResult()
        run.metrics({f"{name}/loss": curve[-1][1] for name, curve in made.curves.items() if curve})
        write_file(folder / SOURCES_FILE, json.dumps(made.sources, indent=1) + "\n")
        return made.model_copy(update={"mlflow": run.url, "seconds": time.monotonic() - began})


def made_once(store: str, cfg: MiniaturesConfig) -> FrozenResult:
    """Returns the miniatures in the store, trained now unless they are there."""
    home = open_store(store).join(
        "frozen", value_digest({"format": MINIATURES_FORMAT, **cfg.model_dump(mode="json")})[:12]
    )
    if home.exists(SOURCES_FILE):
        log.info("the frozen models were made before, as %s says; delete that to make them anew", home.uri)
        return FrozenResult.model_validate_json(home.get(SOURCES_FILE))
    with scratch("frozen") as folder:
        curves = make_miniatures(cfg, folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            home.put_file(path.relative_to(folder).as_posix(), path)
        made = FrozenResult(
            sources={name: home.join(name).uri for name in curves},
            digests={name: frozen_digest(folder / name) for name in curves},
            curves=curves,
        )
    home.put(SOURCES_FILE, made.model_dump_json(indent=1).encode())
    return made


def frozen_sources(cfg: Config, folder: str | Path | None) -> list[str]:
    """Returns overrides that replace each source `frozen:NAME` by the place of NAME in a folder that `make_frozen`
    wrote.

    Raises ConfigError if there is no such folder, or if it has no such model.
    """
    wanted = {setting: source for setting, source, _ in named_sources(cfg) if source.startswith(MADE_HERE)}
    if not wanted:
        return []
    if folder is None:
        setting, source = next(iter(wanted.items()))
        raise ConfigError(f"{setting} is {source}: name the folder that `blip make-frozen` wrote by --frozen")
    try:
        places = json.loads((Path(folder) / SOURCES_FILE).read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"--frozen {folder}: has no {SOURCES_FILE}; name a folder that `blip make-frozen` wrote"
        ) from None
    found = []
    for setting, source in wanted.items():
        name = source.removeprefix(MADE_HERE)
        if name not in places:
            there = ", ".join(places) or "no models"
            raise ConfigError(f"{setting} is {source}, but --frozen {folder} has {there}: name one of them")
        found.append(f"{setting}={places[name]}")
    return found
