"""A sample as members of a tar, in img2dataset's layout, and back."""

import json
from collections.abc import Iterable
from typing import Any

from blip.data.index import IMAGE
from blip.data.sample import BadSample, Sample


def pack(sample: Sample) -> dict[str, bytes]:
    """Extension to bytes: `png`, or `0.png` and on of several; `txt` where there is one text, else `texts` inside `json`."""
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


def unpack(key: str, members: dict[str, bytes]) -> Sample:
    """The sample of a key. Raises BadSample that says what is wrong with it; a sample may have no text, but not an empty one."""
    names = image_names(members)
    if not names:
        raise BadSample("no image")
    meta = parse(members.get("json", b"{}"))
    texts = meta.pop("texts", [])
    if "txt" in members:
        texts = [read(members["txt"])]
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        raise BadSample("texts are no list of texts")
    if not all(map(str.strip, texts)):
        raise BadSample("empty text")
    return Sample(key, [members[name] for name in names], texts, meta, names[0].rpartition(".")[2])


def image_names(members: Iterable[str]) -> list[str]:
    """The extensions that hold the images: one without a number, else those with numbers, `2.png` before `10.png`."""
    names = sorted(filter(IMAGE.fullmatch, members))
    single = [name for name in names if "." not in name]
    return single[:1] or sorted(names, key=lambda name: int(name.partition(".")[0]))


def parse(data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except ValueError:
        raise BadSample("json cannot be decoded") from None
    if not isinstance(meta, dict):
        raise BadSample("json is no mapping")
    return meta


def read(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadSample("text is not UTF-8") from None
