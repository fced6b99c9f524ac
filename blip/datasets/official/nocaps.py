"""NoCaps: images of Open Images with captions, in-, near- and out-domain of COCO's (arXiv 1812.08658)."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from blip.datasets.official.files import AnnotationFiles, ImageFolder, Official, extension_of, key_of, text_of
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

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        """Yields images with their captions, none for the test split, whose captions the server keeps."""
        name = files.find(*FILES[split])
        captions: defaultdict[Any, list[str]] = defaultdict(list)
        with files.form(name):
            content = files.json(name)
            path_field, id_field, images = "image", "img_id", content
            if isinstance(content, dict):
                path_field, id_field, images = "file_name", "id", content["images"]
                for annotation in content.get("annotations", ()):
                    with files.record(name):
                        captions[annotation["image_id"]].append(text_of(annotation["caption"]))
        records = []
        for image in images:
            with files.record(name):
                image_id = int(image[id_field])
                texts = [text_of(text) for text in image.get("caption", captions[image_id])]
                records.append((text_of(image[path_field]), image_id, image.get("domain"), texts))
        for path, image_id, domain, texts in records:
            bare = path.rpartition("/")[2]
            data = pictures.get(path, f"{split}/{bare}", bare)
            if data is not None:
                meta = {"image_id": image_id, **({"domain": domain} if domain else {})}
                yield Sample(
                    f"{image_id:05d}-{key_of(bare.rpartition('.')[0])}", [data], texts, meta, extension_of(bare)
                )
