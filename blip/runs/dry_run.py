"""Dry run: what an ingestion would read, leave out and write, on a page; nothing else is written."""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from blip.config import ConfigError, load_config
from blip.datasets.own import Entries, Files, forms_of
from blip.datasets.own.tars import InTars
from blip.progress import progress
from blip.report.step_page import ImageCard, StepPage
from blip.results import DryRunResult
from blip.runs.context import RunContext
from blip.runs.data_config import SPLITS, IngestConfig, Tars
from blip.runs.found import HEAD, common_row, found_row, place_list, with_source
from blip.runs.look import Looked, verdicts
from blip.runs.own_data import InManifest, check_usable, divide
from blip.runs.shares import DEFAULT_SPLIT
from blip.shards.discover import UNREADABLE_TAR
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.storage import write_file

PAGE = "dry-run.html"
MOST = 2000
"""Images that are looked at."""
SHOWN = 10
"""Samples on the page."""
EXAMPLES = 3
"""Names of left-out images for each reason."""


@dataclass
class Seen:
    """What was seen of one set."""

    looked: Looked = field(default_factory=Looked)
    shown: list[tuple[int, Sample]] = field(default_factory=list)
    """Samples, drawn evenly, each with its number among the good ones."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Names of left-out images by reason."""


def dry_run(context: RunContext, sources: Sequence[str], folder: str | Path) -> DryRunResult:
    """Looks at the first MOST images of each set of own data, and writes a page on them to `folder`.

    Raises as `ingest`; ConfigError also for data that are made or have a reader of their own.
    """
    began = time.monotonic()
    cfg = load_config(IngestConfig, "ingest", context.preset, with_source(sources, context.overrides))
    data = cfg.data
    if not isinstance(data, Files | Tars):
        raise ConfigError(f"--dry-run looks at own data, but {data.type} is read by rules of its own: leave it out")
    sets = sets_of(data)
    seen = {name: look_at_first(entries, MOST) for name, entries in sets.items()}
    one = seen.get("")
    parts: dict[str, list[int]] = {}
    why = "named as splits"
    if one is not None:
        parts, why = parts_of(one.looked, data.split)
    splits = {name: len(numbers) for name, numbers in parts.items()} or {
        name or "images": int(found.looked.good.sum()) for name, found in seen.items()
    }
    number = sum(len(found.looked.verdicts) for found in seen.values())
    total = sum(max(entries.total, 0) for found in sets.values() for entries in found)
    left_out = sum((found.looked.left_out for found in seen.values()), Counter())
    refused = refusal(sets, seen, data)
    place = Path(folder, PAGE)
    page = StepPage(
        "What would be read",
        f"Of about {max(total, number):,} images {number:,} were looked at. Nothing was written but this page.",
        tables=[
            *([("Ingestion would end here", [("reason",), (refused,)])] if refused else []),
            ("Found", [HEAD, *rows_of(sets), common_row(data)]),
            ("Left out", [("images", "reason", "such as"), *reasons(left_out, seen)] if left_out else [("nothing",)]),
            (f"Splits: {why}", [("split", "images", "where they would go"), *places(splits, data, context.store)]),
        ],
        galleries=[("Samples", cards(seen, parts))],
    )
    write_file(place, page.html())
    return DryRunResult(
        page=str(place),
        found=tuple(what for _, what, _ in rows_of(sets)),
        images=number,
        splits=splits,
        left_out=dict(left_out),
        refused=refused,
        seconds=time.monotonic() - began,
    )


def refusal(sets: Mapping[str, Sequence[Entries]], seen: Mapping[str, "Seen"], data: Files | Tars) -> str:
    """Returns why ingestion would end, with the setting to change; empty if it would not."""
    for split, found in seen.items():
        places = ", ".join(place for place, _, _ in rows_of({split: sets[split]}))
        tars = sum(len(form.keys) for form in sets[split] if isinstance(form, InTars))
        broken = found.looked.counts[UNREADABLE_TAR]
        if broken > data.lost * tars:
            return f"{places}: {broken} of {tars} tars cannot be read, more than data.lost={data.lost:g} allows"
        try:
            check_usable(found.looked, data, places)
        except ConfigError as error:
            return str(error)
    return ""


def sets_of(data: Files | Tars) -> dict[str, list[Entries]]:
    """Returns the entries of each set by the split that it is named as; one set has no name."""
    if isinstance(data, Files):
        return {"": [*forms_of(data.model_copy(update={"lost": 1.0}))]}  # broken tars are counted
    if data.is_one_set:
        return {"": of_tars(data, "web")}
    return {split: of_tars(data, split) for split in SPLITS}


def of_tars(data: Tars, split: str) -> list[Entries]:
    places = place_list(getattr(data, split))
    if len(places) == 1 and places[0].endswith(".json"):
        return [InManifest(Manifest.load(places[0]))]
    hints = {**data.layout.model_dump(), "lost": 1.0, "form": "tars"}
    return [*forms_of(Files(path=places, **hints))]


def rows_of(sets: Mapping[str, Sequence[Entries]]) -> list[tuple[str, str, str]]:
    found = []
    for split, entries in sets.items():
        for one in entries:
            place, words, settings = (
                (one.manifest.root, f"a manifest of {one.total:,} images", "")
                if isinstance(one, InManifest)
                else found_row(one)  # pyright: ignore[reportArgumentType]  all others are forms
            )
            found.append((f"{split}: {place}" if split else place, words, settings))
    return found


def look_at_first(entries: Sequence[Entries], most: int) -> Seen:
    """Looks at the first entries, and keeps some of the good ones, drawn evenly and always the same."""
    seen, rng, good = Seen(), random.Random(0), 0
    with progress(most, "looking") as bar:
        for entry, sample, verdict in islice(verdicts(entries, seen.looked.counts), most):
            seen.looked.verdicts.append(verdict)
            bar.advance()
            if sample is None:
                names = seen.examples.setdefault(verdict.reason, [])
                if len(names) < EXAMPLES:
                    names.append(entry.name)
                continue
            if len(seen.shown) < SHOWN:
                seen.shown.append((good, sample))
            elif (place := rng.randrange(good + 1)) < SHOWN:
                seen.shown[place] = (good, sample)
            good += 1
        bar.total = bar.done
    seen.shown.sort(key=lambda found: found[0])
    return seen


def parts_of(looked: Looked, split: str) -> tuple[dict[str, list[int]], str]:
    """Returns the numbers of good images by split, and why they are in it."""
    try:
        parts, numbers = divide(looked, split)
    except ConfigError as error:
        if split:
            raise
        return {}, f"{DEFAULT_SPLIT} is not possible: {error}"
    return {
        name: [row for row, part in enumerate(numbers.tolist()) if part == position]
        for position, name in enumerate(parts.names)
    }, parts.why


def reasons(left_out: Counter[str], seen: Mapping[str, Seen]) -> list[tuple[str, str, str]]:
    return [
        (
            f"{number:,}",
            reason,
            ", ".join([name for found in seen.values() for name in found.examples.get(reason, [])][:EXAMPLES]),
        )
        for reason, number in left_out.most_common()
    ]


def places(splits: Mapping[str, int], data: Files | Tars, store: str) -> list[tuple[str, str, str]]:
    """Returns the rows on where each split would go."""
    found = []
    for name, number in splits.items():
        shards = f"{store}/{name}/{name}-*.tar"
        where = shards if isinstance(data, Files) else "where the tars lie" + ("" if data.gold else f"; {store}/own")
        found.append((f"{name} (gold and web)" if name == "train" else name, f"{number:,}", where))
    return found


def cards(seen: Mapping[str, Seen], parts: Mapping[str, Sequence[int]]) -> list[ImageCard]:
    split_of = {number: name for name, numbers in parts.items() for number in numbers}
    found = []
    for split, of_split in seen.items():
        for number, sample in of_split.shown:
            name = sample.meta.get("file", sample.key)
            note = " · ".join(filter(None, (split or split_of.get(number, ""), name)))
            found.append(ImageCard(name, sample.images[0], [(text, "") for text in sample.texts], note))
    return found
