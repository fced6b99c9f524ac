"""Look: reads every image and its texts once, for what is left out and how images look, before anything is written."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from blip.capfilt.pairs import map_ahead
from blip.capfilt.quality import perceptual_hash
from blip.data.images import decode
from blip.datasets.own import NO_TEXT, Entries, Entry
from blip.logs import log
from blip.progress import ProgressBar, progress
from blip.shards.sample import BadSample, Sample, one_sample
from blip.storage import Store
from blip.storage.records import parse_record

THREADS = 4
AHEAD = 32
"""Images that are read ahead."""
KEPT_TOGETHER = 200
"""Verdicts that are written to the store at once."""
FLAT_BITS = 1
"""A hash with at most this many bits is that of an image of one colour, and tells nothing."""


@dataclass(frozen=True)
class Verdict:
    """What was seen of an entry: how its image looks and its own split, or the reason for which it is left out."""

    reason: str = ""
    look: int = 0
    split: str = ""


@dataclass
class Looked:
    """The verdicts on all entries, in order."""

    verdicts: list[Verdict] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """What belongs to no entry, by reason."""
    complete: bool = False

    @property
    def left_out(self) -> Counter[str]:
        """Everything that is left out, by reason."""
        return self.counts + Counter(verdict.reason for verdict in self.verdicts if verdict.reason)

    @property
    def good(self) -> NDArray[np.bool_]:
        return np.array([not verdict.reason for verdict in self.verdicts], dtype=bool)

    @property
    def looks(self) -> NDArray[np.uint64]:
        """The perceptual hashes of the good ones."""
        return np.array([verdict.look for verdict in self.verdicts if not verdict.reason], dtype=np.uint64)

    @property
    def splits(self) -> list[str]:
        """The splits of the data's own of the good ones."""
        return [verdict.split for verdict in self.verdicts if not verdict.reason]


def look(forms: Sequence[Entries], journal: Store | None) -> Looked:
    """Looks at all entries. With a store as journal, goes on behind the verdicts that are written there.

    Raises as `Entries.groups`.
    """
    found = read_journal(journal) if journal else Looked()
    if found.complete:
        return found
    done = len(found.verdicts)
    if done:
        log.info("going on behind %s images that were looked at", f"{done:,}")
    with progress(sum(form.total for form in forms), "looking", done=done) as bar:
        for _, _, verdict in verdicts(forms, found.counts, skip=done, bar=bar):
            found.verdicts.append(verdict)
            bar.advance()
            if journal and len(found.verdicts) % KEPT_TOGETHER == 0:
                write_verdicts(journal, found, len(found.verdicts) - KEPT_TOGETHER)
        bar.total = len(found.verdicts)
    if journal:
        write_verdicts(journal, found, len(found.verdicts) // KEPT_TOGETHER * KEPT_TOGETHER)
        journal.put("complete.json", json.dumps(found.counts).encode())
    return found


def verdicts(
    forms: Sequence[Entries], counts: Counter[str], *, skip: int = 0, bar: ProgressBar | None = None
) -> Iterator[tuple[Entry, Sample | None, Verdict]]:
    """Yields all but the first `skip` entries in order, read ahead, each with its sample and the verdict on it."""
    with ThreadPoolExecutor(THREADS) as pool:
        for number, form in enumerate(forms):
            before = sum(earlier.total for earlier in forms[:number])
            for group in form.groups(counts):
                if bar:
                    bar.total = before + form.total + sum(later.total for later in forms[number + 1 :])
                rest = group[skip:]
                skip = max(0, skip - len(group))
                yield from map_ahead(pool, judge, rest, AHEAD)


def judge(entry: Entry) -> tuple[Entry, Sample | None, Verdict]:
    """Reads an entry."""
    try:
        with one_sample(entry.name):
            sample = entry.load()
            look = look_of(sample)
            if not sample.texts:
                raise BadSample(sample.text_fault or NO_TEXT)
    except BadSample as error:
        return entry, None, Verdict(str(error))
    return entry, sample, Verdict("", look, entry.split)


def look_of(sample: Sample) -> int:
    """Returns the perceptual hash of a sample's first image; of one of a single colour the digest of all of them."""
    found = perceptual_hash(decode(sample.images[0]))
    if found.bit_count() > FLAT_BITS:
        return found
    digest = hashlib.blake2b(digest_size=8)
    for image in sample.images:
        digest.update(image)
    return int.from_bytes(digest.digest(), "big")


def samples_of(forms: Sequence[Entries], wanted: NDArray[np.bool_], skip: int) -> Iterator[Sample]:
    """Yields the samples of the wanted entries but the first `skip`, in order, each with its position as key.

    Raises BadSample if one has become unreadable since it was looked at.
    """
    begin = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for form in forms:
            for group in form.groups(Counter()):
                numbers = np.flatnonzero(wanted[begin : begin + len(group)])
                rest = [(begin + int(number), group[number]) for number in numbers[skip:]]
                skip = max(0, skip - len(numbers))
                begin += len(group)
                yield from map_ahead(pool, numbered, rest, AHEAD)


def numbered(place: tuple[int, Entry]) -> Sample:
    number, entry = place
    sample = entry.load()
    sample.key = f"{number:09d}"
    return sample


def write_verdicts(journal: Store, found: Looked, begin: int) -> None:
    rows = [[verdict.reason, f"{verdict.look:x}", verdict.split] for verdict in found.verdicts[begin:]]
    journal.put(f"verdicts-{begin // KEPT_TOGETHER:06d}.json", json.dumps(rows).encode())


def read_journal(journal: Store) -> Looked:
    """Returns the verdicts that are written in whole blocks, and all of them if the look was complete.

    What is looked at after a block that cannot be read is looked at again.
    """
    there = set(journal.list())
    found = Looked(complete="complete.json" in there)
    for number in count():
        name = f"verdicts-{number:06d}.json"
        if name not in there:
            break
        try:
            rows = json.loads(journal.get(name))
            found.verdicts += [Verdict(reason, int(look, 16), split) for reason, look, split in rows]
        except (ValueError, TypeError):
            log.warning("%s/%s is broken: the images from there on are looked at again", journal.uri, name)
            found.complete = False
            break
    if found.complete:
        found.counts = Counter(parse_record(journal.get("complete.json"), f"{journal.uri}/complete.json"))
    return found
