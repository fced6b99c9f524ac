"""COCO and Flickr30k captions in the splits of Karpathy."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

from blip.datasets.official.files import (
    NO_TEXT,
    AnnotationFiles,
    ImageFolder,
    Official,
    extension_of,
    key_of,
    last_number,
    text_of,
    texts_of,
)
from blip.shards.sample import Sample

SPLIT_FILES = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


class Karpathy(Official):
    """Captions of images, with a split for each image.

    Reads Karpathy's own file (`dataset_NAME.json`), or the files by split that BLIP publishes.
    """

    SPLITS: ClassVar = ("train", "val", "test")
    OWN_FILE: ClassVar[str]
    BY_SPLIT: ClassVar[str]
    FOLDERS: ClassVar[tuple[str, ...]]
    """Folders in which images may lie below `images`, besides what the annotations say."""

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        name = files.find(self.OWN_FILE, self.BY_SPLIT.format(split=split))
        with files.form(name):
            content = files.json(name)
            own, one = isinstance(content, dict), partial(files.record, name)
            records = own_records(content, split, one) if own else by_image(content, one)
        for path, image_id, captions in records:
            if not captions:
                pictures.rejected[NO_TEXT] += 1
                continue
            bare = path.rpartition("/")[2]
            data = pictures.get(path, *(f"{folder}/{bare}" for folder in self.FOLDERS), bare)
            if data is not None:
                key = key_of(bare.rpartition(".")[0])
                yield Sample(key, [data], captions, {"image_id": image_id}, extension_of(bare))


class COCO(Karpathy):
    OWN_FILE: ClassVar = "dataset_coco.json"
    BY_SPLIT: ClassVar = "coco_karpathy_{split}.json"
    FOLDERS: ClassVar = ("train2014", "val2014")
    SOURCE: ClassVar = SPLIT_FILES
    IMAGES: ClassVar = "https://cocodataset.org/#download (train2014 and val2014)"
    type: Literal["coco"] = "coco"


class Flickr30k(Karpathy):
    OWN_FILE: ClassVar = "dataset_flickr30k.json"
    BY_SPLIT: ClassVar = "flickr30k_{split}.json"
    FOLDERS: ClassVar = ("flickr30k-images", "flickr30k_images", "images")
    SOURCE: ClassVar = SPLIT_FILES
    IMAGES: ClassVar = "https://shannon.cs.illinois.edu/DenotationGraph/ (on request)"
    type: Literal["flickr30k"] = "flickr30k"


Record = tuple[str, Any, list[str]]
"""An image's path, its id, and its captions."""
OneRecord = Callable[[], AbstractContextManager[Any]]


def own_records(content: dict[str, Any], split: str, one: OneRecord = nullcontext) -> list[Record]:
    """Returns the records of a split in Karpathy's file; `restval` is a part of `train`. Reads each within `one()`."""
    wanted = ("train", "restval") if split == "train" else (split,)
    found = []
    for image in content["images"]:
        with one():
            if image["split"] in wanted:
                path = ((image.get("filepath") or "") + "/" + image["filename"]).strip("/")
                image_id = image["cocoid"] if "cocoid" in image else last_number(image["filename"])
                found.append((path, image_id, texts_of(sentence["raw"] for sentence in image["sentences"])))
    return found


def by_image(content: list[dict[str, Any]], one: OneRecord = nullcontext) -> list[Record]:
    """Returns the records of a file of one split, in which an image occurs once for each caption, or has them all.

    Reads each within `one()`.
    """
    found: dict[str, Record] = {}
    for record in content:
        with one():
            path, captions = text_of(record["image"]), record["caption"]
            said = texts_of([captions] if isinstance(captions, str) else captions)
            _, _, known = found.setdefault(path, (path, last_number(path), []))
            known += said
    return list(found.values())
