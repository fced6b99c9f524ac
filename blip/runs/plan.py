"""Plan: checks every stage's settings before the first one runs, and computes each stage's cache key."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blip.capfilt.job import CapFiltJob
from blip.config import Config, ConfigError
from blip.datasets.own import Files, forms_of
from blip.digest import value_digest
from blip.evaluation.job import EvaluationJob
from blip.models.weights.content import named_sources
from blip.models.weights.files import WeightsError
from blip.models.weights.source import check_source
from blip.runs import stages
from blip.runs.found import with_source
from blip.runs.make_frozen import MINIATURES_FORMAT
from blip.runs.register import check_name
from blip.shards.manifest import Manifest
from blip.shards.sources import WILDCARD, find_objects, find_tars
from blip.storage import locate, open_store
from blip.storage.remote import is_web_address, remote_schemes
from blip.training import engine

FORMATS = {
    "ingest": 2,
    **dict.fromkeys(("pretrain", "captioner", "filter"), engine.TRAINING_FORMAT),
    "capfilt": CapFiltJob.FORMAT,
    "select": 1,
    "evaluate": EvaluationJob.FORMAT,
    "register": 1,
    "report": 1,
    "frozen": MINIATURES_FORMAT,
    **dict.fromkeys(("blip2_stage1", "blip2_stage2", "blip2_stage2_t5"), engine.TRAINING_FORMAT),
}
"""The version of each stage's output. Raise it when a code change alters the output: cache keys contain this number,
the settings and the listings of the places they name, but not the code's revision."""

COPIES = "cache"
"""The setting that names a cache folder, which is no input."""
MAX_PLACE_CHARACTERS = 1024
"""Longer texts name no place."""


def plan(
    name: str, source: str, preset: str, overrides: Sequence[str], names: Sequence[str] = stages.BOOTSTRAP
) -> dict[str, list[str]]:
    """Returns the overrides of each stage of a pipeline `stage.key=value`, followed by its cache key `key=DIGEST`.

    The key digests the stage's number in FORMATS, its configuration, and the listings of the files and objects that the
    configuration names, so a new tar at the same place changes the key.
    Raises ConfigError with all mistakes, weights and tokenizers that are nowhere among them; StoreError if a place
    cannot be listed.
    """
    check_name(name)
    ingest = [f"ingest.{override}" for override in with_source(source, stages.overrides_for("ingest", overrides))]
    others = [override for override in overrides if not override.startswith("ingest.")]
    configs: dict[str, Config | None] = {**stages.load_stages(preset, [*ingest, *others], names), "report": None}
    gate_is_measured(configs["register"], configs["evaluate"])
    sources_are_there(configs)
    keys = cache_keys(configs)
    return {
        stage: [*(override for override in overrides if override.startswith(f"{stage}.")), f"key={key}"]
        for stage, key in keys.items()
    }


def cache_keys(configs: Mapping[str, Config | None]) -> dict[str, str]:
    """Returns the key of each stage's step. Raises StoreError if a place cannot be listed."""
    listings: dict[str, dict[str, str]] = {}
    found = {}
    for stage, config in configs.items():
        values = config.model_dump(mode="json") if config else {}
        own = getattr(config, "data", None)
        read = what_is_read(own) if isinstance(own, Files) else {}
        places = sorted(set(place_names({**values, "data": {}} if read else values)))
        for place in places:
            if place not in listings:
                listings[place] = listing(place)
        seen = {place: listings[place] for place in places if listings[place]} | read
        format = FORMATS.get(stage, engine.TRAINING_FORMAT)  # further stages train
        found[stage] = value_digest({"format": format, "config": values, "seen": seen})[:16]
    return found


def what_is_read(data: Files) -> dict[str, dict[str, str]]:
    """Returns the stamps by key of all files that own data are read from, images that a table names among them.

    Raises ConfigError if the data are not understood.
    """
    return {form.place.source: form.stamps() for form in forms_of(data)}


def sources_are_there(configs: Mapping[str, Config | None]) -> None:
    """Raises ConfigError with all settings whose weights or tokenizers are nowhere; StoreError if that is unknown."""
    wrong = []
    for stage, config in configs.items():
        for setting, source, content in named_sources(config) if config else ():
            try:
                check_source(source, content)
            except WeightsError as error:
                wrong.append(f"{stage}.{setting}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))


def gate_is_measured(register: Config | None, evaluate: Config | None) -> None:
    """Raises ConfigError if the gate needs scores of a task that the evaluation leaves out."""
    for metric in getattr(register, "gate", ()):
        task = metric.partition(".")[0]
        if getattr(evaluate, task, evaluate) is None:
            raise ConfigError(
                f"register.gate asks for {metric}, which evaluate.{task}=null leaves out: evaluate it, or set "
                "register.gate to other scores, such as register.gate=[retrieval.mean]"
            )


def place_names(values: Any, setting: str = "") -> Iterator[str]:
    """Yields the strings of nested plain values that may name a place."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from place_names(value, key)
    elif isinstance(values, list):
        for value in values:
            yield from place_names(value, setting)
    elif (
        isinstance(values, str)
        and setting != COPIES
        and 0 < len(values) <= MAX_PLACE_CHARACTERS
        and values.isprintable()
    ):
        yield values


def listing(place: str) -> dict[str, str]:
    """Returns the stamps by key of a file, folder, pattern of tars or prefix; an empty dict for any other text.

    Of a folder with tars only the tars count. A manifest includes its tars.
    """
    if not is_place(place):
        return {}
    if place.endswith(".tar"):
        return find_tars([place])[1]
    if not os.path.exists(place) and (WILDCARD.search(place) or "{" in place):
        return find_objects(place)[1]
    if is_web_address(place):
        store, key = locate(place.rstrip("/"))
        return store.stamps(key)
    below = open_store(place.rstrip("/") or "/").stamps()
    if below or place.endswith("/"):
        tars = {key: stamp for key, stamp in below.items() if key.endswith(".tar")}
        return tars or below
    store, key = locate(place)
    found = store.stamps(key)
    return {**found, **tars_of_manifest(place)} if key in found and key.endswith(".json") else found


def is_place(text: str) -> bool:
    """Returns whether a text may name a place; a word without a slash must exist to count."""
    if text.partition("://")[0] in ("s3", "file", *remote_schemes()) and "://" in text:
        return True
    fixed = re.split(r"[{*?[]", text, maxsplit=1)[0]
    return os.path.exists(text) or ("/" in fixed and os.path.isdir(os.path.dirname(fixed) or "/"))


def tars_of_manifest(uri: str) -> dict[str, str]:
    """Returns the stamps of a manifest's tars by URI; an empty dict if the file is no manifest."""
    try:
        manifest = Manifest.load(uri)
    except ConfigError:
        return {}
    there = manifest.store.stamps()
    return {f"{manifest.root}/{shard.name}": there.get(shard.name, "") for shard in manifest.shards}
