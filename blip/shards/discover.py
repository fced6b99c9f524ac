"""Manifests of tars that other tools wrote."""

import hashlib
import json
import logging
import tarfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field

from blip.config import Config, ConfigError, validate
from blip.digest import file_digest
from blip.progress import progress
from blip.shards.index import Index
from blip.shards.manifest import Layout, Manifest, Shard
from blip.shards.names import HARMLESS
from blip.shards.reading import ShardFile, local_copy
from blip.shards.sample import BadSample, Rejected, format_counts
from blip.shards.sources import find_tars
from blip.shards.verification import ShardError
from blip.storage import MissingKeyError, Store, StoreError

THREADS = 8
"""Tars that are read concurrently."""
SAVE_SECONDS = 20.0
"""Seconds after which the readings so far are kept, for a call after one that was killed."""
PATIENCE = 1.0
"""Seconds of reading tars before it is worth a line."""
NO_TEXT = "no text"
log = logging.getLogger(__name__)

UNREADABLE_TAR = "tar that cannot be read"


class Limits(Config):
    """How much of the tars may be unusable before reading them fails."""

    lost: float = Field(default=0.0, ge=0, le=1)
    """Largest share of tars that may be missing or broken; they are left out and counted. With 0, one is an error."""
    unusable: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a tar's members that may belong to no sample with an image. More is most likely a misreading of
    names, for which there is `keys`."""
    without_text: float = Field(default=0.9, ge=0, le=1)
    """Largest share of samples that may have no readable text; 1 accepts images alone. `text_extension` and
    `text_field` set where texts are."""


ACCEPT_READABLE = Limits(unusable=1, without_text=1)
"""Limits that accept every tar that can be read."""


class Reading(Config):
    """The result of reading one tar."""

    stamp: str
    """The tar's entry in the store's listing (size, time or ETag) before it was read; if unchanged, it is not read
    again."""
    shard: Shard
    rejected: dict[str, int] = Field(default_factory=dict)
    """What was left out, by reason."""
    without_text: dict[str, int] = Field(default_factory=dict)
    """Samples without a readable text, by reason."""


def discover(
    source: str | Path | Sequence[str],
    name: str = "",
    *,
    memory: Store | None = None,
    known: Collection[str] = (),
    layout: Layout = Layout(),  # noqa: B008
    limits: Limits = ACCEPT_READABLE,
) -> Manifest:
    """Returns the manifest of `source`.

    A source is a manifest's file; a tar; tars by pattern (`web/{00000..00041}.tar`, `web/*.tar`), folder or prefix; or
    several such places of tars.

    Tars are read once, completely, for their digests and samples. With a store as `memory`, results are kept there, and
    later calls read only new and replaced tars. Shards whose digests are `known` are left out.

    Raises ConfigError if there is no tar. Raises ShardError, which names every missing or broken tar, if they exceed
    `limits`, or if too little of a tar, or of all, is usable.
    """
    sources = [str(source)] if isinstance(source, str | Path) else list(source)
    if len(sources) == 1 and sources[0].endswith(".json"):
        whole = Manifest.load(sources[0])
        return whole.model_copy(update={"shards": tuple(shard for shard in whole.shards if shard.sha256 not in known)})
    if not sources or any(one.endswith(".json") for one in sources):
        raise ConfigError(
            f"sources {', '.join(sources) or 'of tars: none is given'}: give one manifest (.json), or only tars"
        )
    store, stamps = find_tars(sources)
    read = load_readings(memory, store.uri) if memory else {}
    before = dict(read)

    def reading(key: str) -> Reading | ShardError:
        former = before.get(key)
        if former and former.stamp == stamps[key] != "" and former.shard.layout == layout and former.shard.index_sha256:
            return former
        try:
            return scan_tar(store, key, stamps[key], layout)
        except ShardError as e:
            return e

    found: list[Reading] = []
    broken: list[str] = []
    saved = time.monotonic()
    try:
        with (
            ThreadPoolExecutor(THREADS) as pool,
            progress(len(stamps), "reading tars", "tars", patience=PATIENCE) as bar,
        ):
            for key, made in zip(stamps, pool.map(reading, stamps), strict=True):
                bar.advance()
                if isinstance(made, ShardError):
                    broken.append(str(made))
                    continue
                read[key] = made
                if made.shard.sha256 not in known:
                    found.append(made)
                if memory and made is not before.get(key) and time.monotonic() - saved >= SAVE_SECONDS:
                    save_readings(memory, store.uri, read)
                    saved = time.monotonic()
    finally:
        if memory and read != before:
            save_readings(memory, store.uri, read)
    check_limits(store, found, broken, len(stamps), limits)
    counts = sum(
        (Counter(reading.rejected) + Counter(reading.without_text) for reading in found),
        Counter({UNREADABLE_TAR: len(broken)}),
    )
    shards = tuple(reading.shard for reading in found)
    return Manifest(name=name or store.uri.rpartition("/")[2], root=store.uri, shards=shards, counts=dict(+counts))


def check_limits(store: Store, found: Sequence[Reading], broken: Sequence[str], asked: int, limits: Limits) -> None:
    """Raises ShardError if more of the tars is unusable than the limits allow."""
    if len(broken) > limits.lost * asked:
        raise ShardError(
            f"{len(broken)} of {asked} tars cannot be read, more than data.lost={limits.lost:g} allows:"
            + "".join(f"\n{e}" for e in broken)
        )
    for message in broken:
        log.warning("left out: %s", message)
    for reading in found:
        lost = sum(number for reason, number in reading.rejected.items() if reason not in HARMLESS)
        if lost > limits.unusable * (lost + reading.shard.samples):
            raise ShardError(
                f"shard {store.uri}/{reading.shard.name}: {format_counts(reading.rejected)} and "
                f"{reading.shard.samples} samples: too little can be used; see data.keys for how names are read, "
                f"or raise data.unusable={limits.unusable:g}"
            )
    samples = sum(reading.shard.samples for reading in found)
    without = sum((Counter(reading.without_text) for reading in found), Counter())
    if without.total() > limits.without_text * samples:
        raise ShardError(
            f"{without.total()} of {samples} samples in {store.uri} have no text that can be read: "
            f"{format_counts(without)}; set data.text_extension or data.text_field, or raise "
            f"data.without_text={limits.without_text:g} to accept images alone"
        )


def load_readings(memory: Store, root: str) -> dict[str, Reading]:
    """Returns the stored readings of the tars below a URI, by key.

    The last of two concurrent writers wins; the other's tars are read again next time.
    """
    origin = f"{memory.uri}/{readings_key(root)}"
    try:
        found = json.loads(memory.get(readings_key(root)))
    except MissingKeyError:
        return {}
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{origin} is not JSON: {e}; delete it to read the tars again") from None
    if not isinstance(found, list) or not all(isinstance(values, dict) for values in found):
        raise ConfigError(f"{origin} is not a list of readings; delete it to read the tars again")
    readings = [validate(Reading, values, origin) for values in found]
    return {reading.shard.name: reading for reading in readings}


def save_readings(memory: Store, root: str, read: Mapping[str, Reading]) -> None:
    memory.put(readings_key(root), json.dumps([reading.model_dump() for reading in read.values()]).encode())


def readings_key(root: str) -> str:
    """Returns the key under which the readings of the tars below a URI are stored."""
    return f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"


def scan_tar(store: Store, key: str, stamp: str, layout: Layout) -> Reading:
    """Reads a tar for its entry in the manifest and for counts of what is unusable. Raises ShardError, which names the
    tar."""
    uri = f"{store.uri}/{key}"
    rejected = Rejected()
    try:
        with local_copy(store, key) as path:
            index = Index.scan(path, rejected, layout.keys)
            shard = Shard(
                name=key,
                sha256=file_digest(path),
                bytes=path.stat().st_size,
                samples=len(index),
                index_sha256=index.digest,
                layout=layout,
            )
            with ShardFile(store, shard, path, verified=True, index=index) as file:
                return Reading(stamp=stamp, shard=shard, rejected=dict(rejected), without_text=count_without_text(file))
    except MissingKeyError:
        raise ShardError(f"shard {uri} is missing") from None
    except tarfile.TarError as e:
        raise ShardError(f"shard {uri} cannot be read as a tar: {e}") from e
    except StoreError:
        raise
    except Exception as e:
        raise ShardError(f"shard {uri} cannot be read: {type(e).__name__}: {e}") from e


def count_without_text(file: ShardFile) -> dict[str, int]:
    """Counts the samples of a shard without a readable text, by reason."""
    reasons = Rejected()
    for row in range(len(file)):
        try:
            if not file.texts(row):
                reasons[NO_TEXT] += 1
        except BadSample as e:
            reasons.add(e)
    return dict(reasons)
