"""Sources of weights and tokenizers: a path, a store's URI, or a name on the Hugging Face hub or in a mirror of it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blip.models.weights.content import MADE_HERE, MODEL, Content, NotHereError
from blip.models.weights.files import SUFFIXES, WeightsError
from blip.models.weights.mirror import MIRROR_RECORD, VARIABLE, folder_of, mirror_uri
from blip.models.weights.places import CachedModel, HubModel, Place, StoreFolder
from blip.storage import MissingKeyError, locate, open_store

FILES = (*SUFFIXES, ".txt")
"""Endings of a source that is one file rather than a folder."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@contextmanager
def fetched(source: str, content: Content = MODEL) -> Iterator[Path]:
    """Yields the local file or folder of a source; what is a temporary copy is removed on exit.

    A source is a path, a store's URI (`s3://bucket/model.pth`, `s3://bucket/folder`), or a name on the hub
    (`google-bert/bert-base-uncased`). A name is looked up in the mirror that `BLIP_WEIGHTS` names, in the hub's cache,
    and unless `HF_HUB_OFFLINE=1` on the hub. Files that `blip fetch-weights` stored are verified.
    Raises WeightsError that lists all attempts, and StoreError, a retryable error, if a store or the hub fails.
    """
    if is_one_file(source):
        with opened_file(source) as path:
            yield path
    else:
        place, names = find(source, content)
        with place.opened(names) as folder:
            yield folder


def check_source(source: str, content: Content = MODEL) -> None:
    """Raises WeightsError if a source is missing, and StoreError if a store or the hub fails; reads no weights.

    A model that is made before it is needed is not looked for.
    """
    if source.startswith(MADE_HERE):
        return
    if not is_one_file(source):
        find(source, content)
    elif "://" in source:
        store, key = locate(source)
        if not store.exists(key):
            raise WeightsError(f"{content.what} {source} does not exist; copy it there, or name another file")


def is_one_file(source: str) -> bool:
    """Returns whether a source is a file, here or in a store."""
    return source.endswith(FILES) if "://" in source else Path(source).is_file()


@contextmanager
def opened_file(source: str) -> Iterator[Path]:
    """Yields the local file of a source that is one file. Raises StoreError."""
    if "://" not in source and not (Path(source).parent / MIRROR_RECORD).is_file():
        yield Path(source)
        return
    store, key = locate(source)
    if not store.exists(key):
        raise MissingKeyError(f"{source} does not exist")
    with StoreFolder(store).opened([key]) as folder:
        yield folder / key


def find(source: str, content: Content) -> tuple[Place, list[str]]:
    """Returns the first place that holds what is wanted of a source, and the names of its files there.

    Raises WeightsError that lists all places, and StoreError if a store or the hub fails.
    """
    tried = []
    for open_place in places(source, content):
        try:
            place = open_place()
            return place, content.choose(place.names(), place.read, place.where)
        except NotHereError as error:
            tried.append(str(error))
    raise WeightsError(f"{content.what} {source!r}: {'; '.join(tried)}; {way_out(source)}")


def places(source: str, content: Content) -> list[Callable[[], Place]]:
    """Returns functions that open the places of a source, in the order in which they are tried.

    Raises WeightsError if the source is neither a place nor a name.
    """
    if "://" in source or Path(source).exists():
        return [lambda: StoreFolder(open_store(source))]
    if not is_hub_name(source):
        raise WeightsError(
            f"{content.what} {source!r}: no such file or folder, and no hub name such as google-bert/bert-base-uncased"
        )
    name, mirror = content.hub_name(source), mirror_uri()
    mirrored = [lambda: StoreFolder(folder_of(mirror, name), f"the mirror {mirror}/{name}")] if mirror else []
    return [*mirrored, lambda: CachedModel(name), lambda: HubModel(name)]


def is_hub_name(source: str) -> bool:
    """Returns whether a text may be a name on the hub, with or without its owner, rather than a path."""
    return bool(HUB_NAME.fullmatch(source)) and not source.endswith(FILES)


def way_out(source: str) -> str:
    """Returns what to do about a source that is nowhere."""
    if not is_hub_name(source):
        return "copy the files there, or name another source"
    mirror = mirror_uri()
    to = f"--to {mirror}" if mirror else f"--to STORE and set {VARIABLE}=STORE"
    return (
        f"fill a store where there is a network, by blip fetch-weights --preset PRESET {to}; or name a folder or a "
        "store's URI"
    )
