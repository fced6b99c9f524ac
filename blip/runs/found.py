"""What sources are: the settings that they stand for, and what is said of them at the start."""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import get_args

from blip.config import ConfigError, validate
from blip.datasets.own import Files, Form, forms_of, in_place
from blip.logs import log
from blip.runs.data_config import KINDS, SPLITS, Data, Tars
from blip.runs.shares import DEFAULT_SPLIT
from blip.storage import MissingKeyError, locate
from blip.storage.store import UNSIGNED_BUCKETS


def with_source(source: str | Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Adds sources to the overrides.

    A kind of data sets `data.type`, which the overrides may change. Places set `data.web` if they hold tars of one
    store, a manifest, or if the overrides say that they are tars, and `data.path` for any other form. Without sources
    all is left to the settings.
    Raises ConfigError if a source is neither a kind nor a place of known data.
    """
    sources = several(source) if isinstance(source, str) else list(source)
    read_without_keys(sources, overrides)
    if not sources:
        return [*overrides]
    if len(sources) == 1 and sources[0] in KINDS:
        check_foreign_keys(sources[0], overrides)
        return [f"data.type={sources[0]}", *overrides]
    if is_web(sources, overrides):
        return ["data.type=tars", *overrides, f"data.web={listed(sources)}"]
    return ["data.type=files", *overrides, f"data.path={listed(sources)}"]


def listed(sources: Sequence[str], bare: bool = False) -> str:
    """Returns sources as the value of an override, or `bare` as one text that `several` reads."""
    if bare and len(sources) == 1:
        return sources[0]
    return json.dumps(sources[0] if len(sources) == 1 else sources, ensure_ascii=False)


def read_without_keys(sources: Sequence[str], overrides: Sequence[str]) -> None:
    """Has this process read the buckets that are named without keys if `data.anonymous` is among the overrides.

    Later steps do so as their manifests say.
    """
    if given(overrides, "anonymous").lower() != "true":
        return
    places = [*sources, *(override.partition("=")[2] for override in overrides)]
    named = {found for place in places for found in re.findall(r"\w+://[^/\s\"\],]+", place)}
    buckets = {bucket.removeprefix("s3://") for bucket in named}
    known = os.environ.get(UNSIGNED_BUCKETS, "")
    os.environ[UNSIGNED_BUCKETS] = ",".join(sorted(buckets | set(filter(None, known.split(",")))))


def several(source: str) -> list[str]:
    """Returns the sources in the text of a pipeline's parameter: one, or a list in JSON."""
    if not source.startswith("["):
        return [source]
    try:
        found = json.loads(source)
    except ValueError:
        return [source]  # a pattern
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else [source]


def given(overrides: Sequence[str], key: str) -> str:
    """Returns the value that the overrides give a key of `data`; empty if none."""
    values = [override.partition("=")[2] for override in overrides if override.startswith(f"data.{key}=")]
    return values[-1] if values else ""


def is_web(sources: Sequence[str], overrides: Sequence[str]) -> bool:
    """Returns whether sources are web pairs in tars that are read in place. Raises ConfigError if they are unknown."""
    if given(overrides, "type") == "files" or given(overrides, "form"):
        return False
    if all(map(is_manifest, sources)):
        return True
    try:
        found = forms_of(validate(Files, {"path": sources, **hints_of(overrides)}, "data"))
    except ConfigError as e:
        near = difflib.get_close_matches(sources[0], KINDS, n=1) if len(sources) == 1 else []
        name = f"source {sources[0]!r}" if len(sources) == 1 else f"sources {', '.join(sources)}"
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{name} is not understood{hint}: {e}. Or write shapes for the embedded world, or tars, with data.gold, "
            "data.web and data.test set to where they lie"
        ) from None
    if in_place(found):
        return True
    if other := next((split for split in ("gold", "test") if given(overrides, split)), ""):
        raise ConfigError(
            f"data.{other} goes with tars that are read in place, but {', '.join(sources)} holds "
            f"{'; '.join(form.words for form in found)}: name all sources together, and shares of them by data.split"
        )
    return False


def hints_of(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the settings among the overrides on which a guess depends."""
    return {name: given(overrides, name) for name in HINTS if given(overrides, name)}


def is_manifest(source: str) -> bool:
    """Returns whether a source is a manifest of shards, rather than a JSON file of annotations."""
    if not source.endswith(".json"):
        return False
    store, key = locate(source)
    try:
        content = json.loads(store.get(key))
    except MissingKeyError:
        return True  # reading it says that it is missing
    except ValueError:
        return False
    return isinstance(content, dict) and "shards" in content


def check_foreign_keys(kind: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError if settings of tars are given, but a source that has none of them."""
    if given(overrides, "type") or kind == "tars":
        return
    known = next(cls for cls in get_args(get_args(Data)[0]) if cls.model_fields["type"].default == kind)
    for split in SPLITS:
        if given(overrides, split) and split not in known.model_fields:
            raise ConfigError(
                f"data.{split} says where tars lie, but the source is {kind}: say source=tars (blip ingest tars), or "
                "data.type=tars"
            )


HINTS = ("table", "image_field", "text_field", "encoding")
"""Settings of data on which a guess depends."""
HEAD = ("place", "what it holds", "settings")


def tell(data: Data) -> None:
    """Logs what was found, in plain words, and the settings under which it is read."""
    match data:
        case Files():
            rows = [*map(found_row, forms_of(data)), common_row(data)]
        case Tars() if data.is_one_set:
            rows = [(", ".join(place_list(data.web)), "tars, read where they lie", ""), common_row(data)]
        case _:
            return
    log.info("found\n%s", "\n".join(aligned([HEAD, *rows])))


def found_row(form: Form) -> tuple[str, str, str]:
    """Returns where a form lies, what it is, and the settings under which it is read."""
    return form.place.source, form.words, settings_text(form.settings)


def common_row(data: Files | Tars) -> tuple[str, str, str]:
    """Returns the settings that hold for all places, in the same columns."""
    split = data.split or (f"the data's own, or else {DEFAULT_SPLIT}" if isinstance(data, Files) else DEFAULT_SPLIT)
    keys = {"keys": data.keys} if isinstance(data, Tars) else {}
    return "all", "", settings_text({"type": data.type, **keys, "split": split, "lost": f"{data.lost:g}"})


def settings_text(settings: Mapping[str, str]) -> str:
    return "  ".join(f"data.{name}={value}" for name, value in settings.items())


def place_list(places: str | tuple[str, ...]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else places


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
