"""Where models come from: folders, files, stores, names on the hub, and MLflow; all become local folders."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from blip.config import ConfigError
from blip.digest import file_digest, folder_digest, value_digest
from blip.models.weights.content import Content, NotHereError, choose_weights
from blip.models.weights.files import SUFFIXES
from blip.models.weights.mirror import copies_folder
from blip.models.weights.source import fetched, is_hub_name, is_one_file
from blip.storage import check_key, locate, open_store
from blip.tasks.model_folder import TOKENIZER
from blip.tracking.models import download_model, is_tracked
from blip.zoo.convert import convert
from blip.zoo.open_clip_name import OPEN_CLIP_NAME, OpenClipName
from blip.zoo.recognise import BLIP2_CLASSES, CONFIG, is_ours, recognise

SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".yaml")
"""Endings of configurations, vocabularies and chat templates."""
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
BESIDE = ("med_config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
"""Files beside a checkpoint that tell of it."""
CONVERSION_FORMAT = 1
"""Raised when a conversion writes another folder from the same files, so that earlier ones are not used again."""


def is_of_tokenizer(name: str) -> bool:
    return name.startswith(f"{TOKENIZER}/")


def is_at_hand(name: str) -> bool:
    """Returns whether a file of a repository is the model's own, rather than in a folder of something else."""
    return "/" not in name or is_of_tokenizer(name)


def describes_ours(config: bytes) -> bool:
    try:
        values = json.loads(config)
    except ValueError:
        return False
    return isinstance(values, dict) and is_ours(values)


@dataclass(frozen=True)
class WholeModel(Content):
    """A model with all that its own library reads: configurations, vocabularies, and weights in one format."""

    def choose(self, names: Set[str], read: Callable[[str], bytes], where: str) -> list[str]:
        small = sorted(name for name in names if is_at_hand(name) and name.endswith(SMALL_FILES))
        if CONFIG in names and describes_ours(read(CONFIG)) and not any(map(is_of_tokenizer, small)):
            raise NotHereError(f"{where} lacks {TOKENIZER}/, which a model folder of ours has")
        try:
            weights = choose_weights(names, read, where)
        except NotHereError:
            weights = [name for name in OPEN_CLIP_WEIGHTS if name in names][:1]
            if not weights:
                raise
        return [*weights, *(name for name in small if name not in weights)]


def model_folder(source: str | Path, tokenizer: str = "", overrides: Sequence[str] = (), ours: bool = False) -> Path:
    """Returns a local folder with the model of a source; checkpoints of BLIP are converted to model folders of ours.

    A source is a folder of ours, of transformers or of open_clip, or a `.pth` of the reference, here or in a store; a
    name on the Hugging Face hub; `open_clip:ARCHITECTURE:WEIGHTS`; `models:/name@alias`, `models:/name/3`, `runs:/ID`
    or a run's ID of MLflow. What is copied or converted stays in a cache beside the hub's own (HF_HOME). `tokenizer`
    and `overrides` tell of a checkpoint what its files do not. A BLIP-2 of transformers that writes texts stays as it
    is, unless `ours` is set.
    Raises ConfigError that names what was looked for; StoreError, TrackingError if trying again can help.
    """
    path = local_path(str(source))
    with naming(source, path):
        kind = recognise(path)
    if kind not in ("blip", "official", "blip2_matcher") and not (kind == "blip2_generator" and ours):
        if tokenizer or overrides:
            raise ConfigError(
                f"model {source}: its files tell all; leave out tokenizer and settings, which checkpoints need"
            )
        return path
    if kind in BLIP2_CLASSES.values() and overrides:
        raise ConfigError(f"model {source}: its files tell all but the tokenizer; leave out settings")
    digest = file_digest(path) if path.is_file() else folder_digest(path)
    beside = {name: file_digest(path.parent / name) for name in BESIDE if (path.parent / name).is_file()}
    known = value_digest([CONVERSION_FORMAT, digest, beside if path.is_file() else {}, tokenizer, list(overrides)])
    with naming(source, path):
        return made(known, lambda folder: convert(path, kind, folder, tokenizer, overrides))


@contextmanager
def naming(source: str | Path, folder: Path, role: str = "model") -> Iterator[None]:
    """Has errors name the source of a model, and not its copy on this machine, which nobody knows."""
    try:
        yield
    except ConfigError as error:
        message = str(error).replace(str(folder), str(source))
        raise type(error)(message if str(source) in message else f"{role} {source}: {message}") from None


def our_model(source: str | Path, what: str) -> Path:
    """Returns the model folder of ours of a source, as `model_folder` does.

    Raises ConfigError, which says `what` needs one, if its model is no BLIP and no BLIP-2.
    """
    folder = model_folder(source, ours=True)
    if recognise(folder) != "ours":
        raise ConfigError(
            f"model {source}: {what} takes models of BLIP, this one is of another kind, for caption, match and capfilt"
        )
    return folder


def local_path(source: str) -> Path:
    """Returns the local folder or file of a source, copied into the cache if it is not on this machine."""
    if not source.strip():
        raise ConfigError("model '': name a folder, a file, a store's URI, a name on the hub, or a model of MLflow")
    if source.startswith(OPEN_CLIP_NAME):
        return open_clip_folder(OpenClipName.of(source))
    if is_tracked(source):
        return copied(lambda folder: download_model(source, folder))
    if "://" in source:
        return copied(lambda folder: (fetch_file if is_one_file(source) else fetch_folder)(source, folder))
    if Path(source).exists():
        return Path(source)
    if source.endswith(SUFFIXES) or not is_hub_name(source):
        raise ConfigError(f"model {source!r}: no such file or folder, nor a hub name such as Salesforce/blip-vqa-base")
    with fetched(source, WholeModel("model")) as path:
        stays = any(path.is_relative_to(place) for place in (constants.HF_HUB_CACHE, copies_folder()))
        return path if stays else copied(lambda folder: Path(shutil.copytree(path, folder, dirs_exist_ok=True)))


def open_clip_folder(name: OpenClipName) -> Path:
    """Returns the folder of a model of open_clip. Raises ConfigError."""
    if on_hub := name.hub_name:
        return local_path(on_hub)
    file = local_path(name.weights)
    if not file.is_file():
        raise ConfigError(f"model {name.weights}: is a folder; name the file of weights in it")
    known = value_digest([OPEN_CLIP_NAME, CONVERSION_FORMAT, name.architecture, file_digest(file)])
    return made(known, lambda folder: name.write(file, folder))


def fetch_file(uri: str, folder: Path) -> Path:
    """Copies a checkpoint of a store into a folder, with what lies beside it and tells of it."""
    store, key = locate(uri)
    if not store.exists(key):
        raise ConfigError(f"model {uri} does not exist; copy it there, or name another file")
    for name in (key, *(name for name in BESIDE if store.exists(name))):
        store.fetch(name, folder / name)
    return folder / key


def fetch_folder(uri: str, folder: Path) -> Path:
    """Copies the objects below a store's URI into a folder. Raises ConfigError if there are none."""
    store = open_store(uri)
    keys = store.list()
    if not keys:
        raise ConfigError(f"model {uri}: nothing lies there; name a folder of objects or a .pth")
    for key in keys:
        path = folder / check_key(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(key, path)
    return folder


def copied(make: Callable[[Path], Path]) -> Path:
    """Returns the place in the cache of what `make` writes into a folder and returns; equal files have one place."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".new-") as temporary:
        inner = Path(temporary, "model")
        inner.mkdir()
        found = make(inner)
        name = found.name if found.is_file() else ""
        folder = found.parent if name else found
        return placed(folder, folder_digest(folder)) / name


def made(known: str, make: Callable[[Path], None]) -> Path:
    """Returns the folder in the cache that is known by a digest; `make` writes it if it is not there."""
    if (cache() / known[:32]).is_dir():
        return cache() / known[:32]
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".new-") as temporary:
        folder = Path(temporary, "model")
        make(folder)
        return placed(folder, known)


def placed(folder: Path, known: str) -> Path:
    """Moves a folder to its place in the cache, unless another process has put it there."""
    place = cache() / known[:32]
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise
    return place


def cache() -> Path:
    """Returns the folder of this machine for models that were copied or converted."""
    folder = copies_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
