"""Fetch-model: copies a model to where the steps of a pipeline find it."""

import shutil
import time
from pathlib import Path

from blip.config import ConfigError
from blip.models.weights.files import SUFFIXES
from blip.results import FetchResult
from blip.runs.capfilt import checked_model
from blip.runs.outputs import HOME, OUTPUT_RECORD, StepOutput
from blip.storage import open_store, scratch
from blip.tasks.model_folder import CONFIG, TOKENIZER, read_model_config
from blip.workers.model import RUN_RECORD, model_digest
from blip.zoo.recognise import recognise
from blip.zoo.source import our_model

FROM_FIRST = "@first"
"""Ends an item of the downstream pipeline's `tasks` whose model starts from the bootstrap's first one."""


def fetch_champion(source: str, item: str, *, store: str, out: str | Path) -> FetchResult:
    """Copies the model that an item of `tasks` starts from to the folder `out`: any source of a BLIP (`zoo.source`).

    For an item that ends in `@first` it is the first model of the bootstrap in the store that made this one.
    Raises ConfigError if there is none; StoreError, TrackingError if trying again can help.
    """
    began = time.monotonic()
    first = item.endswith(FROM_FIRST)
    copy_model(our_model(source, "fine-tuning"), out)
    if first:
        decision = decision_on(
            source, Path(out), store, f"tasks end in {FROM_FIRST}", f"leave out what ends in {FROM_FIRST}"
        )
        with decision.input("before").input("model").folder() as made:
            shutil.rmtree(out)
            copy_model(made, out)
    return FetchResult(
        source=source,
        task=read_model_config(out).task.type,
        first=first,
        digest=model_digest(Path(out)),
        seconds=time.monotonic() - began,
    )


def fetch_role(role: str, source: str, bootstrap: str, *, store: str, out: str | Path) -> FetchResult:
    """Copies CapFilt's captioner or filter to the folder `out`: the model of any source (`zoo.source`).

    Without a source it is the one by which CapFilt made the data of `bootstrap`, a model that the store's bootstrap
    made.
    Raises ConfigError if there is none, or if it cannot play its role; StoreError, TrackingError if trying again can
    help.
    """
    began = time.monotonic()
    if source:
        copy_model(checked_model(role, source), out)
    else:
        with scratch("bootstrap") as model:
            copy_model(our_model(bootstrap, f"{role} of a bootstrap"), model)
            decision = decision_on(bootstrap, model, store, f"no {role} is named", f"name one, {role}=...")
        with decision.input("model").input("data").input("scored").input(role).folder() as made:
            copy_model(checked_model(role, made), out)
    kind = recognise(Path(out))
    return FetchResult(
        source=source or f"{role} of {bootstrap}",
        task=read_model_config(out).task.type if kind == "ours" else kind,
        digest=model_digest(Path(out)),
        seconds=time.monotonic() - began,
    )


def copy_model(folder: Path, out: str | Path) -> None:
    """Copies the files of a model, without what a registry adds to a folder of ours: the digest is the original's."""
    kept = {path.name for path in folder.iterdir() if path.suffix in SUFFIXES} | {CONFIG, TOKENIZER, RUN_RECORD}
    ours = recognise(folder) == "ours"

    def others(place: str, names: list[str]) -> set[str]:
        return set(names) - kept if ours and Path(place) == folder else set()

    shutil.copytree(folder, out, ignore=others, dirs_exist_ok=True)


def decision_on(source: str, folder: Path, store: str, why: str, way_out: str) -> StepOutput:
    """Returns the gate's decision on the second model of a bootstrap in a store, which the folder of a source holds.

    Raises ConfigError, which says `why` it was looked for and the way out, if no bootstrap made it.
    """
    digest = model_digest(folder)
    home = open_store(store).join(HOME, "register")
    for key in home.list():
        if key.endswith(f"/{OUTPUT_RECORD}"):
            decision = StepOutput.load(f"{home.uri}/{key.removesuffix(f'/{OUTPUT_RECORD}')}")
            if "before" in decision.inputs and decision.input("model").result.get("digest") == digest:
                return decision
    raise ConfigError(
        f"{why}, but no bootstrap in {store} made model {source} (digest {digest[:12]}): run the bootstrap with this "
        f"store first, or {way_out}"
    )
