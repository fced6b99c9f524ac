"""NoCaps: images of Open Images with captions, in-, near- and out-domain of COCO's (arXiv 1812.08658)."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from blip.datasets.official.files import ImageFolder, Official, extension_of, key_of
from blip.shards.sample import Sample

FILES = {
    "val": ("nocaps_val_4500_captions.json", "nocaps_val_image_info.json", "nocaps_val.json"),
    "test": ("nocaps_test_image_info.json", "nocaps_test.json"),
}


class NoCaps(Official):
    SPLITS: ClassVar = ("val", "test")
    TRAINING: ClassVar = ()
    SOURCE: ClassVar = "https://nocaps.org/download"
    IMAGES: ClassVar = "https://nocaps.org/download (by the coco_url of each image in the annotations)"
    type: Literal["nocaps"] = "nocaps"

    def samples(self, split: str, pictures: ImageFolder) -> Iterator[Sample]:
        """Yields images with their captions, none for the test split, whose captions the server keeps."""
        files = self.files
        name = files.find(*FILES[split])
        with files.form(name):
            content = files.json(name)
            if isinstance(content, dict):
                captions: defaultdict[Any, list[str]] = defaultdict(list)
                for annotation in content.get("annotations", ()):
                    captions[annotation["image_id"]].append(annotation["caption"])
                records = [
                    (image["file_name"], image["id"], image.get("domain"), captions[image["id"]])
                    for image in content["images"]
                ]
            else:
                records = [
                    (record["image"], record["img_id"], record.get("domain"), record.get("caption", []))
                    for record in content
                ]
        for path, image_id, domain, texts in records:
            bare = path.rpartition("/")[2]
            data = pictures.get(path, f"{split}/{bare}", bare)
            if data is not None:
                meta = {"image_id": image_id, **({"domain": domain} if domain else {})}
                yield Sample(
                    f"{image_id:05d}-{key_of(bare.rpartition('.')[0])}", [data], list(texts), meta, extension_of(bare)
                )
