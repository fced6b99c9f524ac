"""Tar sources: resolves tars, folders, prefixes, and patterns with braces or wildcards to keys of one store."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
BUCKET = re.compile(r"[\w+.-]+://[^/]*")
"""A URI without a folder."""
COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
SHOWN_KINDS = 5
"""Extensions that an error lists if there is no tar."""

Stamps = dict[str, str]
"""Keys with their entry in the store's listing; empty for a tar of a pattern that does not exist."""
Wanted = Callable[[str], bool]
"""Returns whether a key counts."""


def is_tar(key: str) -> bool:
    return key.endswith(".tar")


def is_any(_: str) -> bool:
    return True


def find_tars(sources: Sequence[str]) -> tuple[Store, Stamps]:
    """Returns the common store of all sources, and the tars as keys in it.

    Raises ConfigError if a source has no tar, or if the sources are in different stores.
    """
    return common_store(sources, [find_source(source) for source in sources])


def common_store(sources: Sequence[str], found: Sequence[tuple[Store, Stamps]]) -> tuple[Store, Stamps]:
    """Returns one store for what was found of several sources. Raises ConfigError if there is none."""
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


def find_source(source: str, wanted: Wanted = is_tar) -> tuple[Store, Stamps]:
    """Returns the store of one source, and its tars, or what else is wanted. Raises ConfigError if there is none."""
    store, stamps = find_objects(source, wanted)
    if stamps:
        return store, stamps
    if wanted is is_tar:
        raise ConfigError(f"no .tar below {source!r}{describe_contents(source)}; give {ACCEPTED_SOURCES}")
    raise ConfigError(f"{source}: nothing is there; name files, a folder, a prefix, or a pattern of them")


def find_objects(source: str, wanted: Wanted = is_any) -> tuple[Store, Stamps]:
    """Returns the store of one source, and what is wanted of the objects at a file, folder, prefix or pattern.

    What exists under the very name is no pattern, whatever braces and brackets it has; neither is the part of a path
    that exists. Raises ConfigError for a pattern that is none.
    """
    if not source.strip():
        raise ConfigError(f"a source is empty; give {ACCEPTED_SOURCES}")
    fixed = existing_part(source)
    rest = source[fixed:]
    if "{" in rest:
        return expand_braces(source, fixed, wanted)
    if (wanted is is_tar and is_tar(source) and not WILDCARD.search(rest)) or os.path.isfile(source):
        store, key = locate(source)
        return store, {key: store.stamps(key).get(key, "")}
    store = open_store(source)
    stamps = list_objects(store, wanted)
    if not stamps and not source.endswith("/") and not os.path.isdir(source) and not BUCKET.fullmatch(source):
        store, prefix = locate(source)
        stamps = list_objects(store, wanted, prefix)
    if not stamps and WILDCARD.search(rest):
        store, stamps = match_wildcards(source, fixed, wanted)
        if not stamps:  # a pattern of folders
            store, stamps = match_wildcards(f"{source.rstrip('/')}/**", fixed, wanted)
    return store, stamps


def existing_part(source: str) -> int:
    """Returns the number of characters at the beginning of a path that name what exists; 0 for a URI."""
    if "://" in source:
        return 0
    ends = [len(source), *(found.start() for found in reversed(list(re.finditer("/", source))))]
    return next((end for end in ends if os.path.exists(source[:end])), 0)


def expand_braces(source: str, fixed: int, wanted: Wanted) -> tuple[Store, Stamps]:
    """Returns the tars of a brace pattern, existing or not; if it also has wildcards, the existing ones.

    The first `fixed` characters are no pattern.
    """
    begin, rest = source[:fixed], source[fixed:]
    check_brace_count(rest, source)
    try:
        names = [begin + name for name in expand_urls(rest)]
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{source!r} is not a brace pattern such as web/{{00000..00041}}.tar: {e}") from None
    if "{" in names[0][fixed:]:
        raise ConfigError(
            f"{source!r} is not a brace pattern such as web/{{00000..00041}}.tar: its braces have no .. and no comma"
        )
    if wanted is not is_tar or any(WILDCARD.search(name[fixed:]) or not is_tar(name) for name in names):
        return common_store(names, [find_source(name, wanted) for name in names])
    start = begin + rest.partition("{")[0]
    store, prefix = locate(f"{start}*")
    there = store.stamps(prefix[:-1])
    below = len(start) - len(prefix[:-1])
    return store, {name[below:]: there.get(name[below:], "") for name in names}


def check_brace_count(pattern: str, source: str) -> None:
    """Raises ConfigError if the brace pattern of a source has too many tars, before they are listed."""
    number = 1
    for inside in re.findall(r"\{([^{}]*)", pattern):
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


def match_wildcards(source: str, fixed: int, wanted: Wanted) -> tuple[Store, Stamps]:
    """Returns what matches a pattern: `*` and `?` match anything but a slash, `**` matches anything.

    The first `fixed` characters are no pattern.
    """
    first = WILDCARD.search(source, fixed)
    start = source[: first.start()] if first else source
    store, prefix = locate(f"{start}*")
    below = len(start) - len(prefix[:-1])
    plain = len(prefix[:-1])  # of what follows the store's name, this much is no pattern
    pattern = re.compile(re.escape(source[below : below + plain]) + "".join(regex_pieces(source[below + plain :])))
    found = list_objects(store, wanted, prefix[:-1])
    return store, {key: stamp for key, stamp in found.items() if pattern.fullmatch(key)}


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


def list_objects(store: Store, wanted: Wanted, prefix: str = "") -> Stamps:
    """Returns the wanted keys of a store with their stamps."""
    return {key: stamp for key, stamp in store.stamps(prefix).items() if wanted(key)}


def describe_contents(source: str) -> str:
    """Describes for an error the files of a place without tars."""
    keys = [*find_objects(source)[1]]
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
