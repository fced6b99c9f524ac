"""The verb fetch-weights: fills a mirror with what a preset names on the hub, for machines without a network."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from blip.config import ConfigError
from blip.digest import file_digest, value_digest
from blip.logs import log
from blip.models.weights.content import Content, NotHereError, named_sources
from blip.models.weights.files import WeightsError
from blip.models.weights.mirror import MIRROR_RECORD, FileRecord, MirrorRecord, copies_folder, folder_of
from blip.models.weights.places import CachedModel, HubModel, Repository, StoreFolder
from blip.models.weights.source import is_hub_name
from blip.progress import progress
from blip.results import FetchWeightsResult, MirroredModel
from blip.runs import stages
from blip.storage import open_store, probe, writing

MEGABYTE = 1_000_000


@dataclass
class Wanted:
    """What the settings want of one name on the hub."""

    settings: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)


@dataclass
class Transfer:
    """The files of a model that its folder in the mirror lacks."""

    name: str
    repository: Repository
    mirror: StoreFolder
    files: list[str]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.repository.size(file) for file in self.files)


def fetch_weights(
    preset: str, overrides: Sequence[str], to: str, names: Sequence[str] = stages.BOOTSTRAP
) -> FetchWeightsResult:
    """Copies every model and tokenizer that a preset's settings name on the hub into the mirror `to`, a store's URI.

    `names` are the stages whose settings count, and `overrides` are `stage.key=value`. Files that the mirror records
    are left as they are, and an interrupted download goes on where it ended. The record of a model, with the digests
    of its files, is written after each file.
    Raises ConfigError, WeightsError if the hub does not give a model, StoreError if the hub or the store fails.
    """
    began = time.monotonic()
    wanted = wanted_models(preset, overrides, names)
    probe(open_store(to), conditional=False)
    transfers = [transfer for name, want in wanted.items() if (transfer := missing(name, want.contents, to))]
    total = sum(transfer.size for transfer in transfers)
    if transfers:
        with megabytes(2 * total, "fetching and storing") as advance:  # each byte comes once and goes once
            for transfer in transfers:
                for file in transfer.files:
                    copy(transfer, file, advance)
    return FetchWeightsResult(
        store=to, models=models_in(to, wanted), fetched_bytes=total, seconds=time.monotonic() - began
    )


def wanted_models(preset: str, overrides: Sequence[str], names: Sequence[str] = stages.BOOTSTRAP) -> dict[str, Wanted]:
    """Returns what the settings of these stages name on the hub, by full name. Raises ConfigError."""
    known = stages.config_classes()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"stage {unknown[0]!r} is unknown; choices: {', '.join(known)}")
    # The data need not be there yet: no source of weights depends on where they lie.
    overrides = [override for override in overrides if not override.startswith("ingest.data")]
    if "ingest" in names:
        overrides.append("ingest.data.type=shapes")
    found: dict[str, Wanted] = {}
    for stage, config in stages.load_stages(preset, overrides, names).items():
        for setting, source, content in named_sources(config):
            if "://" in source or Path(source).exists() or not is_hub_name(source):
                log.info("%s.%s is %s, which is a place: nothing to fetch", stage, setting, source)
                continue
            wanted = found.setdefault(content.hub_name(source), Wanted())
            wanted.settings.append(f"{stage}.{setting}")
            wanted.contents += [content] if content not in wanted.contents else []
    return found


def missing(name: str, contents: Sequence[Content], to: str) -> Transfer | None:
    """Returns what the mirror lacks of a model, or None if it has all of it. Raises WeightsError and StoreError."""
    mirror = StoreFolder(folder_of(to, name))
    record = mirror.record or MirrorRecord(name=name)
    held = mirror.names() & record.files.keys()
    try:
        for content in contents:
            content.choose(held, mirror.read, mirror.where)
    except NotHereError:
        repository = open_repository(name, record.revision)
        files = chosen(repository, name, contents)
        return Transfer(name, repository, mirror, [file for file in files if file not in held])
    log.info("%s: the mirror has it, of revision %s", name, record.revision)
    return None


def open_repository(name: str, revision: str) -> Repository:
    """Returns a model of the hub or, where that must not be asked, of its cache. Raises WeightsError and StoreError."""
    tried = []
    for kind in (HubModel, CachedModel):
        try:
            return kind(name, revision)
        except NotHereError as error:
            tried.append(str(error))
    raise WeightsError(
        f"{name}: {'; '.join(tried)}; run blip fetch-weights where there is a network, with HF_HUB_OFFLINE=0, or name "
        "another source"
    )


def chosen(repository: Repository, name: str, contents: Sequence[Content]) -> list[str]:
    """Returns the wanted files of a repository. Raises WeightsError if something that is wanted is not there."""
    try:
        names = [content.choose(repository.names(), repository.read, repository.where) for content in contents]
    except NotHereError as error:
        raise WeightsError(f"{name}: {error}; name another source") from None
    return list(dict.fromkeys(file for some in names for file in some))


def copy(transfer: Transfer, file: str, advance: Callable[[int], None]) -> None:
    """Copies a file into the mirror, and records it."""
    repository, mirror = transfer.repository, transfer.mirror
    key = value_digest([repository.where, transfer.name, repository.revision, file])[:16]
    partial = copies_folder() / "partial" / key
    with writing(partial.parent):
        partial.parent.mkdir(parents=True, exist_ok=True)
    path = repository.obtain(file, partial, advance)
    found = FileRecord(sha256=file_digest(path), size=path.stat().st_size)
    mirror.store.put_file(file, path, advance)
    record = mirror.record or MirrorRecord(name=transfer.name)
    files = {**record.files, file: found}
    mirror.record = record.model_copy(update={"files": files, "revision": repository.revision})
    mirror.store.put(MIRROR_RECORD, (mirror.record.model_dump_json(indent=1) + "\n").encode())
    partial.unlink(missing_ok=True)
    log.info("%s/%s: %s bytes stored, SHA-256 %s", transfer.name, file, f"{found.size:,}", found.sha256)


@contextmanager
def megabytes(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that adds bytes to a bar of megabytes; threads may call it."""
    count, turn = 0, Lock()
    with progress(round(total / MEGABYTE), what, "MB") as bar:

        def advance(size: int) -> None:
            nonlocal count
            with turn:
                count += size
                bar.advance(round(count / MEGABYTE) - bar.done)

        yield advance


def models_in(to: str, wanted: Mapping[str, Wanted]) -> dict[str, MirroredModel]:
    """Returns the models that the mirror holds now."""
    found = {}
    for name, want in wanted.items():
        record = StoreFolder(folder_of(to, name)).record or MirrorRecord(name=name)
        digests = {file: entry.sha256 for file, entry in sorted(record.files.items())}
        found[name] = MirroredModel(revision=record.revision, settings=tuple(want.settings), files=digests)
    return found
