"""Conversion between samples and members of a tar, in img2dataset's layout."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip.shards.manifest import Layout
from blip.shards.names import TEXT_EXTENSIONS, Members, image_extensions
from blip.shards.sample import BadSample, Sample

TEXT_FIELDS = ("texts", "captions", "caption", "text")
"""Fields of a sample's json that contain its text or texts, in order of precedence."""
MAX_IMAGE_BYTES, MAX_JSON_BYTES, MAX_TEXT_BYTES = 256 << 20, 16 << 20, 1 << 20
"""Largest members that are read, in bytes."""
MAX_TEXTS = 1000
"""Largest number of texts of a sample."""
NOT_UTF8 = "text is not UTF-8"
MAX_JSON_DEPTH = 64
"""Deepest nesting of a sample's json: values that are nested too deeply cannot be written again."""


def pack(sample: Sample) -> dict[str, bytes]:
    """Returns a sample's members by extension.

    The image is `png`, several are `0.png`, `1.png` ...; a single text is `txt`, several are `texts` in `json`.
    """
    if len(sample.images) == 1:
        members = {sample.image_ext: sample.images[0]}
    else:
        members = {f"{i}.{sample.image_ext}": image for i, image in enumerate(sample.images)}
    meta = dict(sample.meta)
    if len(sample.texts) == 1:
        members["txt"] = sample.texts[0].encode()
    elif sample.texts:
        meta["texts"] = sample.texts
    if meta:
        members["json"] = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
    return members


def select_members(members: Members, layout: Layout, chosen: bool) -> tuple[Members, bool]:
    """Returns the members that a sample is made of, and whether one was left out because it is too large for a text.

    Text members are left out if the texts are already `chosen`. Raises BadSample if an image is too large.
    """
    images = image_extensions(members)
    if any(members[name][1] > MAX_IMAGE_BYTES for name in images):
        raise BadSample("image is too large a file")
    texts = () if chosen else text_extensions(layout)
    largest = {**dict.fromkeys(images, MAX_IMAGE_BYTES), "json": MAX_JSON_BYTES, **dict.fromkeys(texts, MAX_TEXT_BYTES)}
    found = {name: members[name] for name in largest if name in members}
    fitting = {name: (offset, size) for name, (offset, size) in found.items() if size <= largest[name]}
    return fitting, len(fitting) < len(found)


def unpack(
    key: str, members: Mapping[str, bytes], layout: Layout, chosen: Sequence[str] | None = None, too_large: bool = False
) -> Sample:
    """Returns the sample with the `chosen` texts, or else with those of its members.

    Empty texts are left out. If no text can be read, the sample's `text_fault` has the reason. Raises BadSample if
    there is no image.
    """
    names = image_extensions(members)
    if not names:
        raise BadSample("no image")
    meta, json_fault = parse_json(members["json"]) if "json" in members else ({}, "")
    texts, text_fault = (
        (list(chosen), "") if chosen is not None else find_texts(members, meta, json_fault, layout, too_large)
    )
    meta.pop("texts", None)
    return Sample(key, [members[name] for name in names], texts, meta, names[0].rpartition(".")[2], text_fault)


def read_texts(members: Mapping[str, bytes], layout: Layout, too_large: bool) -> tuple[list[str], str]:
    """Returns the texts of a sample's members and, if there are none, the reason; it is empty if no member claims to be
    one."""
    meta, json_fault = parse_json(members["json"]) if "json" in members else ({}, "")
    return find_texts(members, meta, json_fault, layout, too_large)


def without_images(members: Members) -> Members:
    images = image_extensions(members)
    return {name: place for name, place in members.items() if name not in images}


def text_extensions(layout: Layout) -> tuple[str, ...]:
    """Returns the extensions of the members that may contain a text."""
    if layout.text_extension:
        return (layout.text_extension,)
    return () if layout.text_field else TEXT_EXTENSIONS


def find_texts(
    members: Mapping[str, bytes], meta: Mapping[str, Any], json_fault: str, layout: Layout, too_large: bool
) -> tuple[list[str], str]:
    """As `read_texts`, with the parsed json."""
    texts, fault = named_texts(members, meta, json_fault, layout)
    return (texts, fault) if texts or not too_large else ([], "text is too large")


def named_texts(
    members: Mapping[str, bytes], meta: Mapping[str, Any], json_fault: str, layout: Layout
) -> tuple[list[str], str]:
    for extension in text_extensions(layout):
        if extension in members:
            return decode_text(members[extension])
    if layout.text_extension and not layout.text_field:
        return [], ""
    if json_fault:
        return [], json_fault
    for name in (layout.text_field,) if layout.text_field else TEXT_FIELDS:
        value = meta.get(name)
        if isinstance(value, str):
            return usable_texts([value])
        if isinstance(value, list) and value:
            return usable_texts(value)
        if value is not None and not isinstance(value, list):
            return [], "texts are no list of texts"
    return [], ""


def decode_text(data: bytes) -> tuple[list[str], str]:
    try:
        return usable_texts([data.decode("utf-8-sig")])
    except UnicodeDecodeError:
        return [], NOT_UTF8


def usable_texts(values: Sequence[Any]) -> tuple[list[str], str]:
    if len(values) > MAX_TEXTS:
        return [], "more texts than can be read"
    strings = [value for value in values if isinstance(value, str)]
    texts = [text for text in strings if text.strip()]
    if sound := [text for text in texts if not has_surrogates(text)]:
        return sound, ""
    if texts:
        return [], NOT_UTF8
    return [], "empty text" if strings else "texts are no list of texts"


def has_surrogates(text: str) -> bool:
    """Returns whether a text has lone surrogates, which stand for bytes that are not of its encoding."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def parse_json(data: bytes) -> tuple[dict[str, Any], str]:
    """Returns a sample's json and, if it is invalid, an empty mapping and the reason.

    Lone surrogates, which cut texts contain and no encoding accepts, become U+FFFD.
    """
    try:
        meta = json.loads(data, parse_constant=lambda _: None)
        if b"\\ud" in data.lower():
            meta = without_surrogates(meta)
    except (ValueError, RecursionError):
        return {}, "json cannot be decoded"
    if not isinstance(meta, dict):
        return {}, "json is no mapping"
    if data.count(b"{") + data.count(b"[") > MAX_JSON_DEPTH and json_depth(meta) > MAX_JSON_DEPTH:
        return {}, "json is nested too deeply"
    return meta, ""


def without_surrogates(value: Any) -> Any:
    """Returns a JSON value with U+FFFD in place of lone surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def json_depth(value: Any) -> int:
    """Returns the levels of nested lists and mappings."""
    containers = [value] if isinstance(value, dict | list) else []
    depth = 0
    while containers:
        depth += 1
        inner = [item for v in containers for item in (v.values() if isinstance(v, dict) else v)]
        containers = [item for item in inner if isinstance(item, dict | list)]
    return depth
