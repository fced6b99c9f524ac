"""Grouping of a tar's members into samples by the key and the extension in each member's name."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from blip.shards.tar import Member

WRITABLE_KEY = re.compile(r"(?:.*/)?[^/.]+")
"""Keys that may be written: the last part has no dot."""
IMAGE_EXTENSIONS = (
    "jpeg",
    "jpg",
    "png",
    "webp",
    "avif",
    "bmp",
    "gif",
    "j2k",
    "jfif",
    "jp2",
    "pbm",
    "pgm",
    "ppm",
    "tif",
    "tiff",
    "features",  # what a frozen image encoder gives, in place of the image
)
IMAGE_EXTENSION = re.compile(rf"(?:\d{{1,9}}\.)?(?:{'|'.join(IMAGE_EXTENSIONS)})")
"""An extension of an image: `png`, or `0.png`, `1.png` if a sample has several."""
TEXT_EXTENSIONS = ("txt", "caption", "cap", "text")
"""Extensions of texts, in order of precedence."""
MAX_PATH, MAX_NAME = 4096, 255
"""Longest member's name, and longest last part of it, in characters: the limits of file systems."""

KeyRule = Literal["auto", "first", "last"]
"""Where a name's key ends: at the first dot of its last part, at its last dot, or as `KnownKeys` infers."""
Members = dict[str, tuple[int, int]]
"""Extension to (offset, size) in bytes."""

EXTRA_IMAGE = "further image of a sample"
HIDDEN_MEMBER = "hidden member"
HARMLESS = (EXTRA_IMAGE, HIDDEN_MEMBER)
"""Reasons that cost no sample: images beside a sample's own (`000.seg.png`), and hidden files of file managers."""


class MemberName(NamedTuple):
    """A name, with the positions of the first and the last dot in its last part."""

    text: str
    first: int
    last: int

    @property
    def head(self) -> str:
        return self.text[: self.first]

    @property
    def stem(self) -> str:
        return self.text[: self.last]

    @property
    def ending(self) -> str:
        return self.text[self.last + 1 :].lower()

    @property
    def dotted(self) -> bool:
        return self.first != self.last

    @property
    def numbered(self) -> bool:
        """Whether it is one image of several, `0.png`."""
        return self.dotted and IMAGE_EXTENSION.fullmatch(self.text[self.first + 1 :].lower()) is not None


@dataclass
class StemKinds:
    """The kinds of members that share a stem."""

    image: bool = False
    text: bool = False
    json: bool = False


def group_members(members: Iterable[Member], split: KeyRule, rejected: Counter[str]) -> dict[str, Members]:
    """Returns the samples of a tar in the order of their first members; a sample's members need not be adjacent.

    Members that belong to no sample with an image are counted in `rejected` by reason.
    """
    named: list[tuple[MemberName, Member]] = []
    for member in members:
        name = parse_name(member.name, rejected)
        if name:
            named.append((name, member))
    keys = find_keys([name for name, _ in named], split)
    samples: dict[str, Members] = {}
    for (name, member), key in zip(named, keys, strict=True):
        extension = name.text[len(key) + 1 :].lower()
        if extension.startswith("__"):
            rejected["member with a reserved name"] += 1
        elif extension in samples.setdefault(key, {}):
            rejected["key twice in a shard"] += 1
        else:
            samples[key][extension] = member.offset, member.size
    complete = {}
    for key, extensions in samples.items():
        used = image_extensions(extensions)
        images = sum(extension.rpartition(".")[2] in IMAGE_EXTENSIONS for extension in extensions)
        if used:
            complete[key] = extensions
            if images > len(used):
                rejected[EXTRA_IMAGE] += images - len(used)
        elif extensions:
            rejected["no image"] += 1
    return complete


def image_extensions(members: Iterable[str]) -> list[str]:
    """Returns the extensions of a sample's images in order.

    An extension without a number wins, the first of IMAGE_EXTENSIONS; else all with numbers, `2.png` before `10.png`.
    """
    names = list(filter(IMAGE_EXTENSION.fullmatch, members))
    single = sorted((name for name in names if "." not in name), key=IMAGE_EXTENSIONS.index)
    return single[:1] or sorted(names, key=lambda name: (int(name.partition(".")[0]), name))


def parse_name(raw: str, rejected: Counter[str]) -> MemberName | None:
    """Parses a name; None, with the reason counted, if it is too long, hidden, or without key and extension."""
    text = printable(raw)
    base = text.rfind("/") + 1
    if len(text) > MAX_PATH or len(text) - base > MAX_NAME:
        rejected["member's name is too long"] += 1
        return None
    if text.startswith(".", base):
        rejected[HIDDEN_MEMBER] += 1
        return None
    first = text.find(".", base)
    last = text.rfind(".", base)
    if first < 0 or last == len(text) - 1:
        rejected["member without key and extension"] += 1
        return None
    return MemberName(text, first, last)


def printable(name: str) -> str:
    """Returns a name with bytes that are not UTF-8, and control characters, escaped as `\\xNN`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def find_keys(names: list[MemberName], split: KeyRule) -> list[str]:
    """Returns the key of each name."""
    match split:
        case "first":
            return [name.head for name in names]
        case "last":
            return [name.stem for name in names]
        case "auto":
            known = KnownKeys(names)
            return [known.key(name) for name in names]


class KnownKeys:
    """Infers the keys of a tar's names: the rule `auto`.

    WebDataset splits at the first dot (`000.jpg`, `000.seg.png`, `000.txt` are one sample), but many files have dots in
    their names (`photo.v2.12.jpg`, `photo.v2.12.txt`). A name's key is its longest prefix that is a known key, or else
    all before its last dot.

    A prefix up to the first dot is known if it has an image of its own (`000.jpg`), or other members and only numbered
    images (`k.json`, `k.0.png`, `k.1.png`). A prefix up to a later dot is known if it has an image and a text of its
    own.
    """

    def __init__(self, names: Iterable[MemberName]):
        self.kinds: defaultdict[str, StemKinds] = defaultdict(StemKinds)
        heads: dict[str, str] = {}
        odd: set[str] = set()  # heads of images with more than a number before the extension
        for name in names:
            kinds = self.kinds[name.stem]
            heads[name.stem] = name.head
            kinds.text |= name.ending in TEXT_EXTENSIONS
            kinds.json |= name.ending == "json"
            if name.ending in IMAGE_EXTENSIONS:
                kinds.image = True
                if name.dotted and not name.numbered:
                    odd.add(name.head)
        self.known: set[str] = set()
        for stem, head in heads.items():
            kinds = self.kinds[stem]
            if stem == head:
                known = kinds.image or head not in odd
            else:
                has_text = kinds.text or (kinds.json and not self.has_image(head))
                known = kinds.image and has_text
            if known:
                self.known.add(stem)

    def has_image(self, stem: str) -> bool:
        return stem in self.kinds and self.kinds[stem].image

    def key(self, name: MemberName) -> str:
        end = name.last
        while end >= name.first:
            key = name.text[:end]
            if key in self.known:
                alone = name.dotted and key == name.head and name.numbered and self.has_image(key)
                return name.stem if alone else key  # `cat.jpg` and `cat.2.jpg` are two images, not one of several
            end = name.text.rfind(".", 0, end)
        return name.stem
