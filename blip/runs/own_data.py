"""Own data: what was found becomes the splits of a data folder, by new shards or by indexes over the tars."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip.capfilt.selected import write_index
from blip.config import ConfigError, validate
from blip.datasets.own import NO_TEXT, Entries, Entry, Files, Form, forms_of
from blip.digest import value_digest
from blip.progress import progress
from blip.runs.look import Looked, look, samples_of
from blip.runs.shares import DEFAULT_SPLIT, assign, data_splits, parse_split
from blip.shards.discover import Limits
from blip.shards.index import Index
from blip.shards.manifest import Manifest, Shard
from blip.shards.reading import open_shard
from blip.shards.sample import Rejected, Sample, format_counts
from blip.shards.writing import write_shard, write_shards
from blip.storage import Store, open_store
from blip.storage.records import parse_record

FORMAT = 1
"""The version of what is read. Raise it when a change of the code reads the same files differently."""


class Parts(NamedTuple):
    names: tuple[str, ...]
    why: str
    """Where the parts come from, in plain words."""


def read_own(data: Files, store: str, per_shard: int, revision: str) -> dict[str, Manifest]:
    """Writes the shards of images with texts in any known form, and returns the splits gold, web and test.

    What is left out is counted by reason. A call after one that was killed goes on behind the shards that are written,
    and writes the same bytes. Raises ConfigError, and ShardError if too many tars are broken.
    """
    forms = forms_of(data)
    journal = journal_of(store, data, forms)
    looked = look(forms, journal)
    check_usable(looked, data, ", ".join(data.places))
    parts, numbers = divide(looked, data.split)
    good = np.flatnonzero(looked.good)
    cut = value_digest([parts.names, per_shard, hashlib.sha256(numbers.tobytes()).hexdigest()])[:16]
    manifests = {}
    for number, name in enumerate(parts.names):
        wanted = np.zeros(len(looked.verdicts), dtype=bool)
        wanted[good[numbers == number]] = True
        manifests[name] = write_part(
            forms,
            wanted,
            f"{store}/{name}",
            name,
            per_shard,
            revision=revision,
            # all that was left out was so before it was in a part
            counts=looked.left_out if number == 0 else {},
            journal=journal.join(cut) if journal else None,
        )
    return data_splits(manifests)


def write_part(
    forms: Sequence[Form],
    wanted: NDArray[np.bool_],
    root: str,
    name: str,
    per_shard: int,
    *,
    revision: str,
    counts: Mapping[str, int],
    journal: Store | None,
) -> Manifest:
    """Writes the shards of the wanted entries, behind those that the journal has."""
    total = int(wanted.sum())
    done = committed(journal, open_store(root), name) if journal else []
    written = sum(shard.samples for shard in done)
    with progress(total, f"writing {name}", done=written) as bar:

        def write(store: Store, stem: str, chunk: Iterable[Sample]) -> Shard:
            shard = write_shard(store, stem, chunk)
            if journal:
                journal.put(f"{stem}.json", shard.model_dump_json().encode())
            bar.advance(shard.samples)
            return shard

        rest = samples_of(forms, wanted, written) if written < total else iter(())
        return write_shards(rest, root, name, per_shard, revision=revision, counts=counts, write=write, done=done)


def committed(journal: Store, root: Store, name: str) -> list[Shard]:
    """Returns the shards of a part that were written before, from the first on without a gap."""
    known, found = set(journal.list(f"{name}-")), []
    for number in count():
        key = f"{name}-{number:06d}.json"
        if key not in known:
            return found
        shard = validate(Shard, parse_record(journal.get(key), f"{journal.uri}/{key}"), f"{journal.uri}/{key}")
        if not root.exists(shard.name):
            return found
        found.append(shard)
    raise AssertionError("unreachable: a gap ends the shards")


def journal_of(store: str, data: Files, forms: Sequence[Form]) -> Store | None:
    """Returns the store of what was seen and written of the same files read in the same way.

    None where a listing does not tell when a file changes.
    """
    places = [(form.place.store.uri, form.stamps()) for form in forms]
    if not all(stamp for _, stamps in places for stamp in stamps.values()):
        return None
    read = data.model_dump(mode="json", exclude={"split", "unusable", "without_text"})
    return open_store(store).join("own", value_digest({"format": FORMAT, "data": read, "places": places})[:16])


def check_usable(looked: Looked, limits: Limits, places: str) -> None:
    """Raises ConfigError if more of the data is left out than the limits allow."""
    number = len(looked.verdicts)
    reasons = Counter(verdict.reason for verdict in looked.verdicts if verdict.reason)
    good, without = number - reasons.total(), reasons[NO_TEXT]
    what = format_counts(looked.left_out)
    if number and without > limits.without_text * number:
        raise ConfigError(
            f"{places}: {without:,} of {number:,} images have no text ({what}); set data.text_extension, "
            "data.text_field or data.table to where the texts are, or write some by `blip caption`, whose table is data"
        )
    if not good:
        raise ConfigError(f"{places}: no image can be used (left out: {what}); name images with their texts")
    others = reasons.total() - without
    if others > limits.unusable * number:
        raise ConfigError(
            f"{places}: {others:,} of {number:,} images cannot be used (left out: {what}); see data.image_field and "
            f"data.keys for how images are found, or raise data.unusable={limits.unusable:g}"
        )


def divide(looked: Looked, split: str) -> tuple[Parts, NDArray[np.int8]]:
    """Returns the parts, and that of each good entry `(N,)`: the data's own splits, or shares. Raises ConfigError."""
    own = looked.splits
    if not split and "train" in own and {"test", "val"} & set(own):
        names = ("train", "test", "val") if {"test", "val"} <= set(own) else ("train", "test")
        part = {"train": 0, "": 0, "test": 1, "val": len(names) - 1}
        return Parts(names=names, why="splits of the data's own"), np.array([part[name] for name in own], np.int8)
    shares = parse_split(split or DEFAULT_SPLIT)
    why = "shares of one set; images that look alike stay together"
    return Parts(names=tuple(shares), why=why), assign(looked.looks, shares)


class InManifest(Entries):
    """The samples of a manifest, where they lie."""

    def __init__(self, manifest: Manifest):
        self.manifest, self.total = manifest, manifest.samples

    def groups(self, counts: Counter[str]) -> Iterator[list[Entry]]:  # noqa: ARG002  the manifest has its own
        for shard in self.manifest.shards:
            with open_shard(self.manifest.store, shard, Rejected()) as file:
                yield [
                    Entry(f"{shard.name}/{file.index[row][0]}", partial(file.image_and_texts, row))
                    for row in range(len(file))
                ]


def split_in_place(whole: Manifest, split: str, limits: Limits, store: str) -> dict[str, Manifest]:
    """Writes indexes that divide tars into splits, and returns the manifests of these. The tars stay as they are.

    Raises ConfigError.
    """
    home = open_store(store).join("own", whole.digest[:16])
    looked = look([InManifest(whole)], home)
    check_usable(looked, limits, whole.root)
    parts, numbers = divide(looked, split or DEFAULT_SPLIT)
    number_of_row = np.full(len(looked.verdicts), -1, dtype=np.int8)
    number_of_row[looked.good] = numbers
    shards: dict[str, list[Shard]] = {name: [] for name in parts.names}
    begin = 0
    for shard in whole.shards:
        with open_shard(whole.store, shard, Rejected()) as file:
            lines = file.index.lines.splitlines(keepends=True)
        rows = number_of_row[begin : begin + len(lines)]
        begin += len(lines)
        for number, name in enumerate(parts.names):
            index = Index(b"".join(line for line, part in zip(lines, rows, strict=True) if part == number))
            if len(index):
                shards[name].append(write_index(home, shard, index))
    left_out = Counter(whole.counts) | looked.left_out  # texts that cannot be read are in both
    return data_splits(
        {
            name: Manifest(
                name=name,
                root=whole.root,
                shards=tuple(shards[name]),
                parents=(whole.digest,),
                counts=dict(left_out) if number == 0 else {},
                meta=whole.meta,
            )
            for number, name in enumerate(parts.names)
        }
    )
