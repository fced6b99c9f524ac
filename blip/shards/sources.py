"""Tar sources: resolves tars, folders, prefixes, and patterns with braces or wildcards to keys of one store."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import PurePosixPath

from webdataset.shardlists import expand_urls

from blip.config import ConfigError
from blip.storage import Store, locate, open_store

MAX_TARS = 1_000_000
"""Largest number of tars in a brace pattern."""
ACCEPTED_SOURCES = (
    "a manifest (.json), a tar, a pattern such as web/{00000..00041}.tar or web/*.tar, a folder or a prefix of tars"
)
WILDCARD = re.compile(r"[*?[]")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
SHOWN_KINDS = 5
"""Extensions that an error lists if there is no tar."""

Stamps = dict[str, str]
"""Keys with their entry in the store's listing; empty for a tar of a pattern that does not exist."""


def find_tars(sources: Sequence[str]) -> tuple[Store, Stamps]:
    """Returns the common store of all sources, and the tars as keys in it.

    Raises ConfigError if a source has no tar, or if the sources are in different stores.
    """
    found = [find_source(source) for source in sources]
    if len(found) == 1:
        return found[0]
    places = [store.uri.split("/") for store, _ in found]
    common = takewhile(lambda parts: len(set(parts)) == 1, zip(*places, strict=False))
    root = [parts[0] for parts in common]
    if len(root) < (3 if "://" in found[0][0].uri else 1):
        raise ConfigError(
            f"sources {', '.join(sources)} are in different stores; a data set must be in one folder or bucket"
        )
    stamps: Stamps = {}
    for (_, keys), place in zip(found, places, strict=True):
        stamps |= {"/".join([*place[len(root) :], key]): stamp for key, stamp in keys.items()}
    return open_store("/".join(root) or "/"), stamps


def find_source(source: str) -> tuple[Store, Stamps]:
    """Returns the store of one source, and its tars."""
    if not source.strip():
        raise ConfigError(f"a source is empty; give {ACCEPTED_SOURCES}")
    if "{" in source:
        return expand_braces(source)
    if source.endswith(".tar") and not WILDCARD.search(source):
        store, key = locate(source)
        return store, {key: store.stamps(key).get(key, "")}
    store = open_store(source)
    stamps = list_tars(store)
    if not stamps and not source.endswith("/"):
        store, prefix = locate(source)
        stamps = list_tars(store, prefix)
    if not stamps and WILDCARD.search(source):
        store, stamps = match_wildcards(source)
    if not stamps:
        raise ConfigError(f"no .tar below {source!r}{describe_contents(source)}; give {ACCEPTED_SOURCES}")
    return store, stamps


def expand_braces(source: str) -> tuple[Store, Stamps]:
    """Returns the tars of a brace pattern, existing or not; if it also has wildcards, the existing ones."""
    check_brace_count(source)
    try:
        names = expand_urls(source)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{source!r} is not a brace pattern such as web/{{00000..00041}}.tar: {e}") from None
    if "{" in names[0]:
        raise ConfigError(
            f"{source!r} is not a brace pattern such as web/{{00000..00041}}.tar: its braces have no .. and no comma"
        )
    if any(WILDCARD.search(name) or not name.endswith(".tar") for name in names):
        return find_tars(names)
    start = source.partition("{")[0]
    store, prefix = locate(f"{start}*")
    there = store.stamps(prefix[:-1])
    below = len(start) - len(prefix[:-1])
    return store, {name[below:]: there.get(name[below:], "") for name in names}


def check_brace_count(source: str) -> None:
    """Raises ConfigError if a brace pattern has too many tars, before they are listed."""
    number = 1
    for inside in re.findall(r"\{([^{}]*)", source):
        ends = re.fullmatch(r"(-?\d{1,100})\.\.(-?\d{1,100})(?:\.\.(-?\d{1,100}))?", inside)
        if ends:
            first = int(ends[1])
            last = int(ends[2])
            step = abs(int(ends[3] or 1))
            number *= abs(last - first) // (step or 1) + 1
        else:
            number *= inside.count(",") + 1
    if number > MAX_TARS:
        raise ConfigError(
            f"{source!r} names {number:,} tars; a pattern may name {MAX_TARS:,}, "
            "a folder or a prefix may have any number"
        )


def match_wildcards(source: str) -> tuple[Store, Stamps]:
    """Returns the tars that match a pattern: `*` and `?` match anything but a slash, `**` matches anything."""
    start = source[: WILDCARD.search(source).start()]  # pyright: ignore[reportOptionalMemberAccess]
    store, prefix = locate(f"{start}*")
    below = len(start) - len(prefix[:-1])
    pattern = re.compile("".join(regex_pieces(source[below:])))
    return store, {key: stamp for key, stamp in list_tars(store, prefix[:-1]).items() if pattern.fullmatch(key)}


def regex_pieces(pattern: str) -> Iterator[str]:
    """Translates a wildcard pattern to parts of a regular expression."""
    for piece in re.findall(r"\*\*|\*|\?|\[[^\]]+\]|.", pattern):
        match piece:
            case "**":
                yield ".*"
            case "*":
                yield "[^/]*"
            case "?":
                yield "[^/]"
            case _ if len(piece) > 1:
                negated = piece[1] in "!^"
                choices = re.escape(piece[2:-1] if negated else piece[1:-1]).replace(r"\-", "-")
                yield f"[{'^' if negated else ''}{choices}]"
            case _:
                yield re.escape(piece)


def list_tars(store: Store, prefix: str = "") -> Stamps:
    """Returns the keys of a store's tars with their stamps."""
    return {key: stamp for key, stamp in store.stamps(prefix).items() if key.endswith(".tar")}


def describe_contents(source: str) -> str:
    """Describes for an error the files of a place without tars."""
    keys = open_store(source).list()
    if not keys:
        return ", where nothing is"
    kinds = Counter(file_extension(PurePosixPath(key)) for key in keys)
    named = ", ".join(f"{number:,} {name or 'without extension'}" for name, number in kinds.most_common(SHOWN_KINDS))
    more = (
        "; tars are read in place, so uncompress them"
        if any(name.startswith((".tar", ".tgz")) for name in kinds)
        else ""
    )
    return f" (there are {named}{more})"


def file_extension(path: PurePosixPath) -> str:
    """Returns a file's extension; double ones such as `.tar.gz` as one."""
    return "".join(path.suffixes[-2:]) if path.suffix in COMPRESSED_SUFFIXES else path.suffix
