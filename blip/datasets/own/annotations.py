"""Annotation files in JSON: COCO's captions, Karpathy's splits, and lists of images with captions."""

import json
from collections import Counter
from typing import Any

from blip.config import ConfigError
from blip.datasets.official.karpathy import by_image, own_records
from blip.datasets.own.config import Hints
from blip.datasets.own.entries import SPLIT_WORDS, split_of
from blip.datasets.own.named import Named, Record
from blip.datasets.own.place import Place, is_image
from blip.storage import Store

PEEK_BYTES = 1 << 16
"""Bytes at the beginning of a JSON file by which its kind is guessed."""
KINDS = {"coco": "captions as COCO's", "karpathy": "captions in Karpathy's splits", "list": "a list of captions"}


class Annotations(Named):
    """Images that JSON files describe."""

    def __init__(self, place: Place, keys: list[str], hints: Hints):
        self.place, self.keys, self.hints = place, keys, hints
        kinds = sorted({KINDS[kind_of(place.store, key)] for key in keys})
        self.words = f"{' and '.join(kinds)} in {', '.join(keys)}"
        self.settings = {"form": "annotations", **({"table": keys[0]} if len(keys) == 1 else {})}

    def read(self, counts: Counter[str]) -> list[Record]:  # noqa: ARG002
        return [record for key in self.keys for record in read_annotations(self.place.store, key)]


def kind_of(store: Store, key: str) -> str:
    """Returns the kind of a JSON file by its name, or else by its beginning; empty if it has no captions."""
    name = key.rpartition("/")[2].lower()
    if name.startswith("captions_"):
        return "coco"
    if name.startswith("dataset_") or "karpathy" in name:
        return "karpathy"
    begin = peek(store, key)
    if '"sentences"' in begin and '"images"' in begin:
        return "karpathy"
    if '"caption"' in begin:
        return "list" if begin.lstrip().startswith("[") else "coco"
    # COCO's list of images may fill the beginning
    return "coco" if '"file_name"' in begin and '"images"' in begin else ""


def peek(store: Store, key: str) -> str:
    """Returns the beginning of a text file."""
    path = store.path(key)
    if path:
        with path.open("rb") as file:
            return file.read(PEEK_BYTES).decode("utf-8-sig", "replace")
    return store.get(key)[:PEEK_BYTES].decode("utf-8-sig", "replace")


def read_annotations(store: Store, key: str) -> list[Record]:
    """Returns the records of a file. Raises ConfigError if it is none of the known forms."""
    place = f"{store.uri}/{key}"
    try:
        content = json.loads(store.get(key).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}; copy it again from its source") from None
    folder, named = key.rpartition("/")[0], split_of(key)
    try:
        if isinstance(content, dict) and "annotations" in content:
            return [Record(name, folder, texts, named) for name, texts in coco_captions(content).items()]
        if isinstance(content, dict):
            return [
                Record(path, folder, texts, split)
                for word, split in SPLIT_WORDS.items()
                if word != "restval"  # it is a part of train
                for path, _, texts in own_records(content, word)
            ]
        return [Record(path, folder, texts, named) for path, _, texts in by_image(content)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place} has no captions as COCO's or Karpathy's files have them ({type(error).__name__}: {error}); name "
            "another file by data.table, or the images and texts by a table"
        ) from None


def coco_captions(content: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the captions of each image by its file's name; an image may have none."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        found[names[annotation["image_id"]]].append(annotation["caption"])
    return found


def find_annotations(place: Place, hints: Hints) -> list[str]:
    """Returns the JSON files with captions among the chosen files of a place."""
    found = [key for key in place.chosen if key.lower().endswith(".json")]
    if hints.table:
        return [key for key in found if key == hints.table]
    stems = {key.rpartition(".")[0] for key in place.chosen if is_image(key)}
    apart = [key for key in found if key.rpartition(".")[0] not in stems]
    named = [key for key in apart if key.rpartition("/")[2].lower().startswith("captions_")]
    high = [key for key in apart if key.count("/") <= 1]
    return named or [key for key in high[:MOST_PEEKED] if kind_of(place.store, key)]


MOST_PEEKED = 40
"""JSON files that are opened to learn what they are."""
