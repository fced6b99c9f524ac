"""What a place holds, by the names of its files and the beginning of some; the one place that guesses it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from blip.config import ConfigError
from blip.datasets.own.annotations import Annotations, find_annotations
from blip.datasets.own.beside import TextsBeside
from blip.datasets.own.config import Files, Hints
from blip.datasets.own.entries import Form
from blip.datasets.own.place import Place, is_image
from blip.datasets.own.rows import ending_of
from blip.datasets.own.tables import DOWNLOADED, find_columns, read_table, tables_of
from blip.datasets.own.tars import InTars, is_compressed
from blip.shards.sources import describe_contents, is_tar

SAVED = "state.json"
"""The file that Hugging Face's library writes beside the Arrow files of a data set."""
UNDERSTOOD = (
    "images with a table (CSV, TSV, JSON lines, Parquet) or with texts beside them, annotations of COCO or Karpathy, a "
    "folder of Hugging Face's datasets, or tars"
)


def forms_of(data: Files) -> list[Form]:
    """Returns how each place is read. Raises ConfigError if it is not known for one, StoreError if it is away."""
    hints = Hints.of(data)
    return [form_of(place, data, hints) for place in places_of(data.places)]


def places_of(sources: Sequence[str]) -> list[Place]:
    """Returns the places of sources; files of one folder and one kind, as a shell names them, are one place."""
    found: dict[tuple[str, str], Place] = {}
    for source in sources:
        place = Place.find(source) if not os.path.isfile(source) else None
        kind = kind_of_file(source) if place is None else source
        where = (os.path.dirname(os.path.abspath(source)), kind) if place is None else (source, source)
        if place is None and where in found:
            known = found[where]
            found[where] = replace(known, chosen=known.chosen | Place.find(source).chosen)
        elif where in found:
            raise ConfigError(f"{source}: is named twice; name each place once")
        else:
            found[where] = place or Place.find(source)
    return list(found.values())


def kind_of_file(name: str) -> str:
    if is_image(name):
        return "image"
    return "tar" if is_tar(name) or is_compressed(name) else name


def form_of(place: Place, data: Files, hints: Hints) -> Form:
    """Returns how a place is read: as `data.form` says, or as its files suggest."""
    tars = [key for key in place.chosen if is_tar(key) or is_compressed(key)]
    match data.form:
        case "auto":
            return guess(place, tars, hints)
        case "tars":
            return InTars(place, needed(tars, place, "tar"), hints)
        case "datasets":
            return read_table(place, needed(arrow_files(place), place, "Arrow file"), hints, "datasets")
        case "annotations":
            return Annotations(place, needed(find_annotations(place, hints), place, "JSON with captions"), hints)
        case "table":
            return read_table(place, needed(tables_of(place, hints), place, "table"), hints)
        case "texts":
            return TextsBeside(place, hints)
        case _:
            assert_never(data.form)


def needed(keys: list[str], place: Place, what: str) -> list[str]:
    if not keys:
        raise ConfigError(f"{place.source}: holds no {what}, which data.form asks for; name another place or form")
    return keys


def guess(place: Place, tars: list[str], hints: Hints) -> Form:
    """Returns the form that a place most likely has, the surest sign first."""
    if tars:
        return InTars(place, tars, hints)
    if arrows := arrow_files(place):
        return read_table(place, arrows, hints, "datasets")
    if described := find_annotations(place, hints):
        return Annotations(place, described, hints)
    tables = tables_of(place, hints)
    images = sum(map(is_image, place.chosen))
    if tables and not (images and is_download_record(place, tables[0], hints)):
        return read_table(place, tables, hints)
    if images:
        return TextsBeside(place, hints)
    raise ConfigError(f"{place.source}: holds no data that are known{describe_contents(place.source)}; {WAY_OUT}")


WAY_OUT = f"name {UNDERSTOOD}, or set data.form"


def arrow_files(place: Place) -> list[str]:
    """Returns the Arrow files of a data set that Hugging Face's library saved, without those of its caches."""
    homes = {key.removesuffix(SAVED) for key in place.chosen if key.rpartition("/")[2] == SAVED}
    files = [key for key in place.chosen if ending_of(key) == ".arrow"]
    return [key for key in files if f"{key.rpartition('/')[0]}/".lstrip("/") in homes] if homes else files


def is_download_record(place: Place, key: str, hints: Hints) -> bool:
    """Returns whether a table says what img2dataset downloaded, beside the images and their texts."""
    if hints.table or hints.image_field:
        return False
    try:
        columns = find_columns(place, key, hints)
    except ConfigError as error:
        return all(name in str(error) for name in DOWNLOADED)
    return columns.image in DOWNLOADED


def in_place(forms: Sequence[Form]) -> bool:
    """Returns whether all that was found are tars of one store that can be read where they lie."""
    stores = {form.place.store.uri for form in forms if isinstance(form, InTars)}
    plain = all(isinstance(form, InTars) and not any(map(is_compressed, form.keys)) for form in forms)
    return plain and len(stores) == 1
